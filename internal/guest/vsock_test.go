//go:build linux

package guest

import (
	"context"
	"testing"
)

// TestDialHostPort: an error comes with no connection at all, on which Close could be called.
func TestDialHostPort(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that it fails on hosts with vsock, too
	if conn, err := dialHostPort(ctx, 5); err == nil || conn != nil {
		t.Errorf("conn %#v, error %v", conn, err)
	}
}
