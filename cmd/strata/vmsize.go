package main

import (
	"context"
	"fmt"
	"math"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

// limits are the container limits that a VM must have the size for; 0 is no limit.
type limits struct {
	memory int64 // in bytes
	cpus   float64
}

// limitsOf returns the limits of an OCI spec.
func limitsOf(s *specs.Spec) (l limits) {
	if s == nil || s.Linux == nil || s.Linux.Resources == nil {
		return l
	}
	if m := s.Linux.Resources.Memory; m != nil && m.Limit != nil {
		l.memory = max(0, *m.Limit)
	}
	if c := s.Linux.Resources.CPU; c != nil && c.Quota != nil && *c.Quota > 0 {
		period := uint64(100000)
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		l.cpus = float64(*c.Quota) / float64(period)
	}
	return l
}

// guestMiB returns the memory that a guest needs in addition to its containers: the minimum of any guest, and the
// kernel's page tables and structures for the containers' memory.
func guestMiB(containers int) int { return leastMemoryMiB + 64 + containers/32 }

// maxVMMiB bounds the memory of a VM that is sized by a container.
const maxVMMiB = 1 << 24

// sizeVM sets the size of a run's VM so that the container's limits fit. If the size is given, it returns an error
// unless they fit.
func sizeVM(cmd *cli.Command, in *runInput) error {
	if inProcess(cmd) || cmd.String("vm") != "" || in.vm.OS == vmm.Windows {
		return nil
	}
	l := in.limits
	if !cmd.IsSet("vm-memory") && l.memory > 0 {
		mib := (l.memory-1)>>20 + 1
		if mib > maxVMMiB {
			return usage(cmd, "a memory limit of %s: no VM is so large", size(l.memory))
		}
		in.vm.MemoryMiB = int(mib) + guestMiB(int(mib))
	}
	if !cmd.IsSet("vm-cpus") && l.cpus > 0 {
		if most := runtime.NumCPU(); l.cpus > float64(most) {
			return usage(cmd, "%v processors: this system has %d", l.cpus, most)
		}
		if need := int(math.Ceil(l.cpus)); need > 2 { // 2 is the default
			in.vm.CPUs = need
		}
	}
	return notRun(l.fit("the VM, by --vm-memory and --vm-cpus,", in.vm.MemoryMiB, in.vm.CPUs))
}

// fit returns an error unless the limits fit in a VM of a size. A size of 0 is unknown and fits.
func (l limits) fit(vm string, memoryMiB, cpus int) error {
	switch {
	case memoryMiB > 0 && l.memory > int64(memoryMiB)<<20:
		return fmt.Errorf("the container's memory limit is %s, and %s has %s: lower the limit, or use a larger VM",
			size(l.memory), vm, size(int64(memoryMiB)<<20))
	case cpus > 0 && l.cpus > float64(cpus):
		return fmt.Errorf("the container's limit is %v processors, and %s has %d: lower the limit, or use a larger VM",
			l.cpus, vm, cpus)
	}
	return nil
}

// fitsVM returns an error if the limits exceed the size of a running VM.
func (l limits) fitsVM(ctx context.Context, name, dir string) error {
	if l == (limits{}) || name == hostVM {
		return nil
	}
	info, _ := strata.InspectVM(ctx, dir) // opening the VM reports the error
	return l.fit("VM "+name, info.Memory, info.CPUs)
}
