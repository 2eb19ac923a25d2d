package layers

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"

	"github.com/stratavm/strata/internal/span"
	"github.com/stratavm/strata/uvm"
	"github.com/stratavm/strata/vmm"
)

// Mounted is a container's root that is mounted, or what is left of it. Its methods may be called
// concurrently.
type Mounted struct {
	// ID is the container's id.
	ID string
	// Root is the root file system: a guest path, or on the host a volume GUID path.
	Root string
	// ScratchPath is the container's own directory on the scratch, as the guest sees it.
	ScratchPath string
	// VolumePaths is where each of Request.Volumes is, for the bind mounts of the container: a guest path, or on the
	// host itself the path given.
	VolumePaths []string
	// Image is what Request.Image was; nil: nothing.
	Image *Image

	vm        *uvm.UtilityVM
	claim     *uvm.Claim
	guestRoot string // the container's directory in the guest
}

// Open returns the container of an id that is mounted in the VM, by whichever process. Without one the error
// matches uvm.ErrUnknownClaim.
func Open(vm *uvm.UtilityVM, id string) (*Mounted, error) {
	claim, err := vm.FindClaim(id)
	if err != nil {
		return nil, err
	}
	var meta Meta
	if err := claim.Meta(&meta); err != nil {
		return nil, fmt.Errorf("container %q: %w", id, err)
	}
	return &Mounted{ID: id, Root: meta.Root, ScratchPath: meta.ScratchPath, VolumePaths: meta.VolumePaths,
		Image: meta.Image, vm: vm, claim: claim, guestRoot: meta.GuestRoot}, nil
}

// Release removes the root and releases scratch and layers; what no other container uses is unmounted and
// detached. It attempts everything and joins the errors. It is idempotent, and after a failure it can be
// called again and continues. When the VM is gone it succeeds.
func (m *Mounted) Release(ctx context.Context) error {
	return span.Do(ctx, "strata.unmount", func(ctx context.Context) error {
		return m.release(ctx, UnmountOperationAll)
	}, attribute.String("strata.container", m.ID))
}

// ReleaseScratch is Release, but keeps the layers: their unmounting is saved where the VM is about to be shut
// down, and a container that needs the same layers is mounted sooner. The scratch is closed and may be used
// elsewhere. The layers stay the container's, whose id is taken until Release. On a Windows host itself, where no
// layer is held, it is Release.
func (m *Mounted) ReleaseScratch(ctx context.Context) error {
	return m.release(ctx, UnmountOperationSCSI)
}

// Held is the number of things in the VM that the container still holds: 0 after Release.
func (m *Mounted) Held() int {
	return len(m.claim.Leases())
}

// Exec starts a program inside the root, in namespaces that all programs of the container share.
// spec's ContainerID and Root are set by it. See [vmm.Machine] for more.
func (m *Mounted) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	return m.vm.Exec(ctx, m.inside(spec))
}

// Run runs a program inside the root to its end and returns its exit code. When ctx ends first the program is
// killed.
func (m *Mounted) Run(ctx context.Context, spec vmm.ProcessSpec) (exitCode int, err error) {
	return m.vm.Run(ctx, m.inside(spec))
}

func (m *Mounted) inside(spec vmm.ProcessSpec) vmm.ProcessSpec {
	spec.ContainerID, spec.Root = m.ID, m.Root
	return spec
}

// EndPrograms kills all programs that run in the container. It succeeds when there are none, and when the
// VM is gone.
func (m *Mounted) EndPrograms(ctx context.Context) error {
	if err := m.vm.Machine().DeleteContainerState(ctx, m.ID); err != nil && !errors.Is(err, vmm.ErrGone) {
		return fmt.Errorf("end the programs of container %q: %w", m.ID, err)
	}
	return nil
}
