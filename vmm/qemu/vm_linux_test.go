package qemu

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stratavm/strata/bootimage/bootimagetest"
	"github.com/stratavm/strata/vmm"
)

// realVM boots a machine with our agent.
func realVM(t testing.TB, change func(*Config)) *Machine {
	t.Helper()
	needQEMU(t)
	img := bootimagetest.Image(t)
	c := Config{Dir: t.TempDir(), ID: "test", Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline, ExecPorts: 2}
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	begin := time.Now()
	m, err := Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s (%s)", time.Since(begin).Round(time.Millisecond), m.desc.Accel)
	t.Cleanup(func() { end(t, m) })
	return m
}

func run(t testing.TB, r interface {
	Exec(context.Context, vmm.ProcessSpec) (vmm.Process, error)
}, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	p, err := r.Exec(ctx, vmm.ProcessSpec{Args: args, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	return out.String(), code
}

func TestVMBoots(t *testing.T) {
	m := realVM(t, nil)
	text, err := m.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(text)
}
