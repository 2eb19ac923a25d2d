package vmmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/stratavm/strata/vmm"
)

// Tree describes the tree at a path in the guest, as package treetest does. program is where the guest
// has the program that treetest.Lister builds.
func Tree(t testing.TB, m vmm.Machine, program, path string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience) // of a whole Debian, in an emulated machine
	defer cancel()
	var out, errs bytes.Buffer
	p, err := m.Exec(ctx, vmm.ProcessSpec{Args: []string{program, path}, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatal(err)
	}
	code, err := p.Wait(ctx)
	if err != nil || code != 0 {
		t.Fatalf("%s %s: code %d, %v: %s", program, path, code, err, errs.String())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	tree := make(map[string]string)
	if err := json.Unmarshal(out.Bytes(), &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}
