package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

// update gives a container another memory limit. ctr has no command for it.
func (d *daemon) update(t *testing.T, id string, memory int64) error {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+d.dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	limits, err := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &memory}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	_, err = tasks.NewTasksClient(conn).Update(metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "default"),
		&tasks.UpdateTaskRequest{ContainerID: id, Resources: &anypb.Any{
			TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: limits}})
	return err
}

// TestPause: a program that counts stands still while its container is paused, is given another limit, goes on, and is
// killed while it stands still.
func TestPause(t *testing.T) {
	d := need(t)
	seen := d.events(t)
	shared := t.TempDir()
	d.must(t, 0, run("--detach", "--mount", "type=bind,src="+shared+",dst=/shared,options=rbind:rw",
		"--memory-limit", strconv.Itoa(64<<20), image, "counts", "sh", "-c",
		"i=0; while :; do i=$((i+1)); echo $i >/shared/new; cat /shared/new >/shared/n; sleep 0.05; done")...)
	count := func() (n int) {
		t.Helper()
		until(t, func() (err error) { // it may just be written
			b, err := os.ReadFile(shared + "/n")
			if err == nil {
				n, err = strconv.Atoi(strings.TrimSpace(string(b)))
			}
			return err
		})
		return n
	}
	counts := func(beyond int) {
		t.Helper()
		until(t, func() error {
			if n := count(); n <= beyond {
				return fmt.Errorf("it is at %d", n)
			}
			return nil
		})
	}
	shows := func(state string) {
		t.Helper()
		if r := d.must(t, 0, "task", "ls"); !strings.Contains(r.stdout, state) {
			t.Errorf("want %s: %s", state, r.stdout)
		}
	}
	counts(3)
	d.must(t, 0, "task", "pause", "counts")
	shows("PAUSED")
	stands := func() {
		t.Helper()
		before, err := os.ReadFile(shared + "/new")
		time.Sleep(time.Second)
		after, aerr := os.ReadFile(shared + "/new")
		if err != nil || aerr != nil || string(before) != string(after) {
			t.Errorf("it is paused, and counted from %q to %q: %v, %v", before, after, err, aerr)
		}
	}
	stands()
	if r := d.must(t, 0, "task", "metrics", "counts"); !strings.Contains(r.stdout, strconv.Itoa(64<<20)) ||
		!strings.Contains(r.stdout, "pids.current") {
		t.Errorf("metrics of one that is paused: %s", r.stdout)
	}
	if r := d.must(t, 0, "task", "ps", "counts"); strings.Count(r.stdout, "\n") < 3 {
		t.Errorf("processes of one that is paused: %s", r.stdout)
	}
	for _, args := range [][]string{{"pause", "counts"}, {"exec", "--exec-id", "e", "counts", "echo", "ran"}} {
		if r := d.must(t, 1, append([]string{"task"}, args...)...); !strings.Contains(r.stderr, "paused") ||
			r.stdout != "" {
			t.Errorf("%q of one that is paused: %s%s", args, r.stdout, r.stderr)
		}
	}
	if err := d.update(t, "counts", 48<<20); err != nil {
		t.Errorf("update: %v", err)
	}
	if err := d.update(t, "counts", 4<<30); err == nil || !strings.Contains(err.Error(), "4096 MiB") ||
		!strings.Contains(err.Error(), "512 MiB") {
		t.Errorf("more memory than the VM has: %v", err)
	}
	if r := d.must(t, 0, "task", "metrics", "counts"); !strings.Contains(r.stdout, strconv.Itoa(48<<20)) {
		t.Errorf("metrics with another limit: %s", r.stdout)
	}
	stands()
	at := count()
	d.must(t, 0, "task", "resume", "counts")
	shows("RUNNING")
	counts(at + 1)
	if r := d.must(t, 1, "task", "resume", "counts"); !strings.Contains(r.stderr, "not paused") {
		t.Errorf("resumed twice: %s", r.stderr)
	}
	d.must(t, 0, "task", "pause", "counts")
	d.must(t, 0, "task", "kill", "--signal", "KILL", "counts")
	want := []string{"/tasks/create", "/tasks/start", "/tasks/paused", "/tasks/exec-added e", "/tasks/resumed",
		"/tasks/paused", "/tasks/exit counts 137"}
	until(t, func() error {
		if got := seen("counts"); !slices.Equal(got, want) {
			return fmt.Errorf("events %q, want %q", got, want)
		}
		return nil
	})
	d.must(t, 0, "task", "rm", "counts")
	d.must(t, 0, "container", "rm", "counts")
	d.clean(t)
}
