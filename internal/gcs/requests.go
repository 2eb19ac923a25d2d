package gcs

import (
	"context"
	"errors"
	"fmt"

	"github.com/stratavm/strata/hcsschema"
)

// Modify sends a guest request to the VM. An [*Error], or an error that matches ErrNotSent, means that it had no
// effect; with any other error the effect is unknown.
func (c *Client) Modify(ctx context.Context, req hcsschema.GuestRequest) error {
	err := c.call(ctx, TypeModifySettings,
		&ModifyRequest{RequestBase: RequestBase{ContainerId: NullContainer}, Request: req}, &EmptyResponse{}, nil)
	if err != nil {
		return fmt.Errorf("%s %s: %w", req.RequestType, req.ResourceType, err)
	}
	return nil
}

// Stacks returns the stacks of the guest's agent.
func (c *Client) Stacks(ctx context.Context) (string, error) {
	if !c.caps.GuestDefinedCapabilities.DumpStacksSupported {
		return "", fmt.Errorf("guest DumpStacks: %w", ErrUnsupported)
	}
	var resp StacksResponse
	err := c.call(ctx, TypeDumpStacks, &EmptyRequest{RequestBase{ContainerId: NullContainer}}, &resp, nil)
	return printableAll(resp.GuestStacks), err
}

// printableAll is printable without its limit: the size of a message bounds the text.
func printableAll(s string) string {
	out := ""
	for len(s) > 0 {
		n := min(len(s), maxErrorText)
		out += printable(s[:n])
		s = s[n:]
	}
	return out
}

// Mount is a mount in the guest.
type Mount struct {
	Path string
	// Kind is "scsi", "pmem", "directory", "virtiofs" or "overlay".
	Kind       string
	Controller uint8  `json:",omitempty"`
	Lun        uint8  `json:",omitempty"`
	Partition  uint64 `json:",omitempty"`
	Slot       uint32 `json:",omitempty"` // pmem
	Offset     uint64 `json:",omitempty"` // pmem window
	Size       uint64 `json:",omitempty"` // pmem window; 0: the whole device
	Share      string `json:",omitempty"` // directory; for a network its link
	ReadOnly   bool   `json:",omitempty"`
	BlockDev   bool   `json:",omitempty"`
	// ContainerID, Layers (how many) and ScratchPath describe an overlay.
	ContainerID string `json:",omitempty"`
	Layers      int    `json:",omitempty"`
	ScratchPath string `json:",omitempty"`
}

// maxObserved and maxObservedBytes bound the list of mounts of a guest.
const (
	maxObserved      = 100_000
	maxObservedBytes = 16 << 20 // of all pages
)

// Observe returns the mounts in the guest. With guests other than ours the error matches ErrUnsupported.
func (c *Client) Observe(ctx context.Context) ([]Mount, error) {
	if c.caps.GuestDefinedCapabilities.StrataAgent == 0 {
		return nil, fmt.Errorf("observe the guest: %w", ErrUnsupported)
	}
	var mounts []Mount
	for offset, size := 0, 0; ; {
		query, err := EncodeText(PropertyQuery{PropertyTypes: []string{PropertyMounts}, StrataOffset: offset})
		if err != nil {
			return nil, err
		}
		var resp PropertiesResponse
		req := &PropertiesRequest{RequestBase: RequestBase{ContainerId: NullContainer}, Query: query}
		if err := c.call(ctx, TypeGetProperties, req, &resp, nil); err != nil {
			return nil, err
		}
		var p Properties
		if err := resp.Properties.Decode(&p); err != nil {
			return nil, fmt.Errorf("%w: properties: %w", ErrProtocol, err)
		}
		mounts = append(mounts, p.StrataMounts...)
		size += len(resp.Properties)
		if p.StrataNext == 0 {
			return mounts, nil
		}
		if p.StrataNext <= offset || len(mounts) > maxObserved || size > maxObservedBytes {
			return nil, fmt.Errorf("%w: its list of mounts has no end", ErrProtocol)
		}
		offset = p.StrataNext
	}
}

// Shutdown asks the VM to power off. It returns nil if the bridge was closed by that.
func (c *Client) Shutdown(ctx context.Context) error {
	err := c.call(ctx, TypeShutdownGraceful, &EmptyRequest{RequestBase{ContainerId: NullContainer}}, &EmptyResponse{}, nil)
	if errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotSent) || errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
