package qemu

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
)

// lentFile is a descriptor in an fd set of QEMU.
type lentFile struct {
	Set    int `json:"fdset-id"`
	Number int `json:"fd"`
}

// lendFile passes an open file to QEMU. owner is the node or object that uses it.
func (q *qmpClient) lendFile(ctx context.Context, owner string, f *os.File) (lent lentFile, err error) {
	err = q.doWith(ctx, "add-fd", map[string]any{"opaque": owner}, &lent, f)
	return lent, err
}

// lender returns a function that passes files to QEMU for a block node.
func (q *qmpClient) lender(ctx context.Context, owner string) lend {
	return func(f *os.File) (string, error) {
		lent, err := q.lendFile(ctx, owner, f)
		return fmt.Sprintf("/dev/fdset/%d", lent.Set), err
	}
}

// takeBack closes the descriptors that were passed to QEMU for owner. Those still in use stay open until they are not.
// It is no error if there are none.
func (q *qmpClient) takeBack(ctx context.Context, owner string) error {
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct {
			Opaque string `json:"opaque"`
		} `json:"fds"`
	}
	if err := q.do(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	var group errgroup.Group
	for _, s := range sets {
		if len(s.FDs) > 0 && s.FDs[0].Opaque == owner {
			group.Go(func() error { return q.do(ctx, "remove-fd", map[string]any{"fdset-id": s.ID}, nil) })
		}
	}
	return group.Wait()
}
