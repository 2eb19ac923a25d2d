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

// Mounted is a container's mounted root, or what is left of it. Its methods may be called concurrently.
type Mounted struct {
	// ID is the container's id.
	ID string
	// Root is the root file system: a guest path, or on the host a volume GUID path.
	Root string
	// ScratchPath is the container's own directory on the scratch, as a guest path.
	ScratchPath string
	// VolumePaths has the path of each of Request.Volumes, as the source of the container's bind mounts: a guest path
	// or, on the host itself, the host path.
	VolumePaths []string
	// Image is Request.Image.
	Image *Image

	vm        *uvm.UtilityVM
	claim     *uvm.Claim
	guestRoot string // the container's directory in the guest
}

// Open returns the container with the given id that is mounted in the VM, by whichever process. If there is none, the
// error matches uvm.ErrUnknownClaim.
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

// Release removes the root and releases scratch, layers, volumes and network; what no other container uses is
// unmounted and detached. It tries everything and joins the errors. It is idempotent, and after a failure it can be
// called again and continues where it stopped. If the VM is gone, it succeeds.
func (m *Mounted) Release(ctx context.Context) error {
	return span.Do(ctx, "strata.unmount", func(ctx context.Context) error {
		return m.release(ctx, UnmountOperationAll)
	}, attribute.String("strata.container", m.ID))
}

// ReleaseScratch is Release, but keeps the layers: this saves unmounting them if the VM is about to be shut down, and
// a container with the same layers is mounted faster. The scratch is closed and may be used elsewhere. The layers are
// still held by the container, whose id stays in use until Release. On the Windows host itself, which holds no layers,
// it is the same as Release.
func (m *Mounted) ReleaseScratch(ctx context.Context) error {
	return m.release(ctx, UnmountOperationSCSI)
}

// Held returns the number of leases that the container still holds: 0 after Release.
func (m *Mounted) Held() int {
	return len(m.claim.Leases())
}

// Exec starts a program inside the root, in namespaces that all programs of the container share. It sets spec's
// ContainerID and Root. See [vmm.Machine] for more.
func (m *Mounted) Exec(ctx context.Context, spec vmm.ProcessSpec) (vmm.Process, error) {
	return m.vm.Exec(ctx, m.inside(spec))
}

// Run runs a program inside the root, waits for it to exit and returns its exit code. If ctx ends first, the program
// is killed.
func (m *Mounted) Run(ctx context.Context, spec vmm.ProcessSpec) (exitCode int, err error) {
	return m.vm.Run(ctx, m.inside(spec))
}

func (m *Mounted) inside(spec vmm.ProcessSpec) vmm.ProcessSpec {
	spec.ContainerID, spec.Root = m.ID, m.Root
	return spec
}

// EndPrograms kills all programs in the container. It succeeds if there are none, or if the VM is gone.
func (m *Mounted) EndPrograms(ctx context.Context) error {
	if err := m.vm.Machine().DeleteContainerState(ctx, m.ID); err != nil && !errors.Is(err, vmm.ErrGone) {
		return fmt.Errorf("end the programs of container %q: %w", m.ID, err)
	}
	return nil
}
