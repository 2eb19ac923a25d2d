package mounts

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// maxTag is the maximum length of a virtiofs tag in bytes.
const maxTag = 36

// addVirtioFS mounts a virtiofs device, whose files the host serves.
func (t *Table) addVirtioFS(ctx context.Context, s hcsschema.LCOWVirtioFS) error {
	if err := t.CheckPath(s.MountPath); err != nil {
		return err
	}
	if same, err := t.have(s.MountPath, s); same || err != nil {
		return err
	}
	if s.Tag == "" || len(s.Tag) > maxTag {
		return fmt.Errorf("virtiofs tag %q: %w", s.Tag, gcsserver.ErrInvalid)
	}
	t.load("virtiofs")
	ctx, cancel := context.WithTimeout(ctx, deviceTime)
	defer cancel()
	_, err := await(ctx, t.devices.Events, func() (struct{}, error) {
		err := t.mountAt(s.Tag, s.MountPath, "virtiofs", s.ReadOnly, "", nil)
		if errors.Is(err, unix.EINVAL) { // no device with this tag
			err = fmt.Errorf("%w: %w", errAbsent, err)
		}
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("virtiofs %s: %w", s.Tag, err)
	}
	t.note(s.MountPath, mounted{settings: s, what: gcs.Mount{Kind: "virtiofs", Share: s.Tag, ReadOnly: s.ReadOnly}})
	return nil
}

func (t *Table) removeVirtioFS(_ context.Context, s hcsschema.LCOWVirtioFS) error {
	err := t.removeMount(s.MountPath, func(m gcs.Mount) bool { return m.Kind == "virtiofs" && m.Share == s.Tag })
	if err == nil {
		t.rootGone(s.MountPath) // it may have been a container's root
	}
	return err
}
