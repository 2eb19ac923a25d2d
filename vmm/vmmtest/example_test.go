package vmmtest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"

	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/vmmtest"
)

// What package strata asks of a driver, here of the one whose machines exist in memory only.
func ExampleDriver() {
	ctx, quiet := context.Background(), slog.New(slog.DiscardHandler)
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var driver vmm.Driver = &vmmtest.Driver{}
	_, err = driver.Inspect(ctx, dir)
	fmt.Println("none yet:", errors.Is(err, vmm.ErrNoVM))

	m, err := driver.Start(ctx, vmm.StartOptions{Dir: dir, Logger: quiet})
	if err != nil {
		log.Fatal(err)
	}
	add := vmm.Change{Op: vmm.Add, Device: vmm.SCSIDisk{Path: "/data.vhd"}, Mount: vmm.MappedDisk{MountPath: "/data"}}
	if err := m.Apply(ctx, add); err != nil {
		log.Fatal(err)
	}
	if err := m.Close(); err != nil { // the machine runs on
		log.Fatal(err)
	}
	info, err := driver.Inspect(ctx, dir)
	fmt.Println(info.Driver, "running:", info.Running, err)
	if m, err = driver.Open(ctx, dir, vmm.OpenOptions{Logger: quiet}); err != nil {
		log.Fatal(err)
	}
	there, err := m.Observe(ctx)
	fmt.Println(there.Devices, there.Mounts, err)
	fmt.Println(driver.Kill(ctx, dir), errors.Is(m.Err(), vmm.ErrGone))
	// Output:
	// none yet: true
	// fake running: true <nil>
	// [scsi 0:0 /data.vhd (rw)] [mount scsi 0:0 at /data] <nil>
	// <nil> true
}
