package options

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stratavm/strata/internal/regfile"
)

// keptFile has the options of a pod, in its bundle: containerd passes them to the shim's start only, and not when the
// pod is created.
const keptFile = "strata-options"

// Keep writes the options that a shim is started with into its bundle, if there are any. The last extension of a known
// type counts.
func Keep(bundle string, params *bootapi.BootstrapParams) error {
	for _, e := range params.GetExtensions() {
		a := e.GetValue()
		if !a.MessageIs(&runtimeoptions.Options{}) && !a.MessageIs(&runcoptions.Options{}) {
			continue
		}
		b, err := proto.Marshal(a)
		if err == nil {
			err = os.WriteFile(filepath.Join(bundle, keptFile), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keep the runtime options: %w", err)
		}
	}
	return nil
}

// Kept returns what Keep has written; nil: there was nothing.
func Kept(bundle string) (*anypb.Any, error) {
	b, err := regfile.ReadState(filepath.Join(bundle, keptFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	a := &anypb.Any{}
	if err == nil {
		err = proto.Unmarshal(b, a)
	}
	if err != nil {
		return nil, fmt.Errorf("the runtime options that were kept: %w", err)
	}
	return a, nil
}
