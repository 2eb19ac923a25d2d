package task

import (
	"fmt"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// checkOptions returns an error for runtime options, of which this runtime has none. For a container of a sandbox,
// containerd sets options of runc that hold the address of the sandbox's shim; these are accepted.
func checkOptions(a *anypb.Any) error {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return nil
	}
	o := &options.Options{}
	if typeurl.Is(a, o) && proto.Unmarshal(a.GetValue(), o) == nil {
		//lint:ignore SA1019 containerd sets them
		o.TaskApiAddress, o.TaskApiVersion = "", 0
		if proto.Size(o) == 0 {
			return nil
		}
	}
	return fmt.Errorf("runtime options of type %q are not supported, there are none: remove the runtime's options from "+
		"containerd's configuration, and --runtime-config-path from ctr's command line: %w", a.GetTypeUrl(),
		errdefs.ErrNotImplemented)
}
