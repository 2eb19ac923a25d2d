package strata

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/stratavm/strata/internal/wclayer"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs"
)

// The VMs of a Windows host are persistent compute systems whose guest connection belongs to the
// Host Compute Service, so that they outlive the process that made them. The options they were made
// with are kept in the state directory: opening needs them.
const (
	hcsFile = "hcs.json"
	owner   = "strata"
)

// runsBootImage: the boot files of Windows hosts come from elsewhere.
const runsBootImage = false

// hcsVM is what hcsFile holds.
type hcsVM struct {
	LCOW    *hcs.OptionsLCOW `json:"lcow,omitempty"`
	WCOW    *hcs.OptionsWCOW `json:"wcow,omitempty"`
	Started time.Time        `json:"started"`
}

func hcsHost(log *slog.Logger) (hcs.Host, error) {
	h, err := hcs.NativeHost()
	if err != nil {
		return hcs.Host{}, err
	}
	layers := wclayer.NewNative(log, "") // nothing is destroyed here
	h.Grant, h.GrantGroup, h.Logger = layers.GrantVMAccess, layers.GrantVMGroupAccess, log
	return h, nil
}

// maxIDName leaves room in a compute system's identifier for what is appended to the VM's name: what makes
// it unique, and the name of a container.
const maxIDName = 54

// newID makes the identifier of a compute system. The service has one list of them for the whole host, and
// VMs of several state directories may have the same name.
func newID(name string) string {
	var unique [4]byte
	rand.Read(unique[:])
	return fmt.Sprintf("%.*s-%x", maxIDName, name, unique)
}

func newHCS(o VMOptions, build uint32) hcsVM {
	name := o.Name
	if name == "" {
		name = filepath.Base(o.Dir)
	}
	id := newID(name)
	common := func(c *hcs.Options) {
		c.Persistent, c.ExternalGuestConnection = true, false
		if o.MemoryMiB > 0 {
			c.MemorySizeInMB = uint64(o.MemoryMiB)
		}
		if o.CPUs > 0 {
			c.ProcessorCount = int32(min(o.CPUs, runtime.NumCPU()))
		}
	}
	if o.OS == vmm.Windows {
		w := hcs.DefaultWCOW(id, owner, append(append([]string(nil), o.UVMLayers...), filepath.Join(o.Dir, "scratch")))
		common(&w.Options)
		return hcsVM{WCOW: &w, Started: time.Now()}
	}
	boot := o.BootFiles
	if boot == "" {
		boot = DefaultBootFiles
	}
	l := hcs.DefaultLCOW(id, owner, boot, build)
	common(&l.Options)
	// The agent outlives whoever could read its output.
	l.ForwardStdout, l.ForwardStderr = false, false
	return hcsVM{LCOW: &l, Started: time.Now()}
}

func (v hcsVM) create(ctx context.Context, h hcs.Host) (*hcs.Machine, error) {
	if v.WCOW != nil {
		return hcs.CreateWCOW(ctx, h, *v.WCOW)
	}
	return hcs.CreateLCOW(ctx, h, *v.LCOW)
}

func (v hcsVM) open(ctx context.Context, h hcs.Host) (*hcs.Machine, error) {
	if v.WCOW != nil {
		return hcs.OpenWCOW(ctx, h, *v.WCOW)
	}
	return hcs.OpenLCOW(ctx, h, *v.LCOW)
}

func readHCS(dir string) (v hcsVM, err error) {
	b, err := os.ReadFile(filepath.Join(dir, hcsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return v, fmt.Errorf("%w in %s", ErrNoVM, dir)
	}
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil && (v.LCOW == nil) == (v.WCOW == nil) {
		err = errors.New("it names no VM")
	}
	if err != nil {
		return v, fmt.Errorf("%s: %w", filepath.Join(dir, hcsFile), err)
	}
	return v, nil
}

// write replaces the file as a whole: others may be reading it.
func (v hcsVM) write(dir string) error {
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, hcsFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// remember keeps for later commands what is found out about the guest.
func (v hcsVM) remember(h *hcs.Host, dir string) {
	if v.LCOW == nil {
		return
	}
	log, l := h.Logger, *v.LCOW
	v.LCOW = &l
	h.Probed = func(g hcs.GuestGeneration) {
		l.GuestGeneration = g
		if err := v.write(dir); err != nil {
			log.Warn("what was found out about the guest is not kept", "vm", l.ID, "error", err)
		}
	}
}

func startMachine(ctx context.Context, o VMOptions) (vmm.Machine, error) {
	h, err := hcsHost(o.Logger)
	if err != nil {
		return nil, err
	}
	v := newHCS(o, h.Build)
	if err := v.write(o.Dir); err != nil {
		return nil, err
	}
	v.remember(&h, o.Dir)
	m, err := v.create(ctx, h)
	if err != nil {
		if ctx.Err() == nil { // else the service may still be about it, and the file is what the VM can be found by
			err = errors.Join(err, forgetHCS(o.Dir))
		}
		return nil, err
	}
	if err := m.Start(ctx); err != nil {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		ended := m.Terminate(grace)
		if ended == nil { // else it may still be there
			ended = forgetHCS(o.Dir)
		}
		return nil, errors.Join(err, ended, m.Close())
	}
	return m, nil
}

// forgetHCS removes what is known of a VM that is not there.
func forgetHCS(dir string) error { return os.Remove(filepath.Join(dir, hcsFile)) }

func openMachine(ctx context.Context, dir string, o OpenOptions) (vmm.Machine, error) {
	v, err := readHCS(dir)
	if err != nil {
		return nil, err
	}
	h, err := hcsHost(o.Logger)
	if err != nil {
		return nil, err
	}
	v.remember(&h, dir)
	m, err := v.open(ctx, h)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// openExec: the service takes any number of processes that work with one system.
func openExec(ctx context.Context, dir string, o OpenOptions) (Runner, error) {
	return openMachine(ctx, dir, o)
}

func inspectMachine(ctx context.Context, dir string) (VMInfo, error) {
	v, err := readHCS(dir)
	if err != nil {
		return VMInfo{}, err
	}
	info := VMInfo{Dir: dir, Driver: "hcs", Accel: "hyper-v", Started: v.Started}
	if info.OS = vmm.Linux; v.WCOW != nil {
		info.OS = vmm.Windows
	}
	options := v.options()
	info.Memory, info.CPUs = int(options.MemorySizeInMB), int(options.ProcessorCount)
	api, err := hcs.Native()
	if err == nil {
		info.Running, err = hcs.Inspect(ctx, api, options.ID)
	}
	return info, err
}

func (v hcsVM) options() hcs.Options {
	if v.WCOW != nil {
		return v.WCOW.Options
	}
	return v.LCOW.Options
}

// limits are those of the options that VMs are made with here.
func limits(i VMInfo) vmm.Limits {
	l := vmm.Limits{SCSIControllers: 1, SCSILUNs: 64}
	if i.OS == vmm.Windows {
		l.VSMB = true
		return l
	}
	o := hcs.DefaultLCOW("plan", owner, "", hcs.Build())
	l.VPMEMDevices, l.VPMEMMaxBytes, l.Plan9 = o.VPMemDeviceCount, o.VPMemSizeBytes, true
	return l
}

func killMachine(ctx context.Context, dir string) error {
	v, err := readHCS(dir)
	if err != nil {
		return err
	}
	api, err := hcs.Native()
	if err != nil {
		return err
	}
	return hcs.Kill(ctx, api, v.options().ID)
}
