package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/imagetest"
)

// TestRetriesAreSaid: whoever waits for a registry that is asked again learns why, whatever command it is.
func TestRetriesAreSaid(t *testing.T) {
	blobs := imagetest.Blobs{}
	d := blobs.Image(t, nil, imagetest.Layer{Tar: treetest.Tar(t, treetest.Entry{Name: "etc/x"}), Compression: "gzip"})
	reg := imagetest.NewRegistry(t, blobs)
	reg.Tags["v1"] = d
	var busy atomic.Bool
	reg.Before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || !busy.CompareAndSwap(true, false) {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	ref := reg.Host() + "/org/app:v1"
	state := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		var errs bytes.Buffer
		e := &env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &errs, getenv: os.Getenv,
			lookupEnv: os.LookupEnv}
		busy.Store(true)
		args = append([]string{"strata", "--state-dir", state}, args...)
		if code := e.run(t.Context(), args); code != 0 {
			t.Errorf("strata %q: exit code %d: %s", args, code, &errs)
		}
		return errs.String()
	}
	said := "registry " + reg.Host() + ", manifest v1: answer 503 Service Unavailable; attempt 2 of 6 in "
	for _, tt := range []struct {
		args   []string
		prefix string
	}{
		{[]string{"image", "inspect", ref}, said},
		{[]string{"--json", "image", "inspect", ref}, `{"notice":"` + said},
		{[]string{"pull", ref}, said},
		{[]string{"--json", "pull", ref}, `{"notice":"` + said},
	} {
		if got := run(tt.args...); !strings.HasPrefix(got, tt.prefix) {
			t.Errorf("strata %q says %q, want %q", tt.args, got, tt.prefix)
		}
	}
}
