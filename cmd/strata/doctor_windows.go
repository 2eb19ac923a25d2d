package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/stratavm/strata"
)

// minBuild is Windows Server 2019 and Windows 10 1809, the first with all that is called.
const minBuild = 17763

func hostQuestions() []question {
	return []question{
		{"Windows build", true, "update to Windows Server 2019, Windows 10 1809 or later", askBuild},
		{"Host Compute Service", true, "Enable-WindowsOptionalFeature -Online -FeatureName Containers, then restart",
			askDLL("vmcompute.dll")},
		{"layer functions", false, "layers that are disks need a newer Windows", askDLL("computestorage.dll")},
		{"revoking access", false, "taking a VM's right to a file back needs a newer Windows", askDLL("computecore.dll")},
		{"composite images", false, "CIM layers need a newer Windows", askDLL("cimfs.dll")},
		{"boot files", false, "VMs for Linux containers need kernel and initrd.img in " + strata.DefaultBootFiles +
			"; name another folder with STRATA_BOOT_FILES or --boot-files", askBootFiles},
		{"service vmcompute", true, "Start-Service vmcompute", askService("vmcompute")},
		{"Hyper-V", true, "Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All, then restart",
			askService("vmms")},
		{"rights", true, "start an elevated prompt, or: Add-LocalGroupMember -Group 'Hyper-V Administrators' -Member " +
			"$env:USERNAME", askRights},
	}
}

func askBuild(context.Context, *env, *cli.Command) (string, error) {
	v := windows.RtlGetVersion()
	text := fmt.Sprintf("%d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber)
	if v.BuildNumber < minBuild {
		return "", fmt.Errorf("build %s, older than %d", text, minBuild)
	}
	return text, nil
}

func askDLL(name string) func(context.Context, *env, *cli.Command) (string, error) {
	return func(context.Context, *env, *cli.Command) (string, error) {
		if err := windows.NewLazySystemDLL(name).Load(); err != nil {
			return "", err
		}
		return name, nil
	}
}

// askBootFiles looks where vm start would.
func askBootFiles(_ context.Context, e *env, _ *cli.Command) (string, error) {
	dir := cmp.Or(e.getenv("STRATA_BOOT_FILES"), strata.DefaultBootFiles)
	for _, name := range []string{"kernel", "initrd.img"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return printable(dir), nil
}

func askService(name string) func(context.Context, *env, *cli.Command) (string, error) {
	return func(context.Context, *env, *cli.Command) (_ string, err error) {
		// Only the right to look: mgr.Connect asks for all rights.
		h, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
		if err != nil {
			return "", fmt.Errorf("service manager: %w", err)
		}
		defer windows.CloseServiceHandle(h)
		utf16, err := windows.UTF16PtrFromString(name)
		if err != nil {
			return "", err
		}
		sh, err := windows.OpenService(h, utf16, windows.SERVICE_QUERY_STATUS)
		if err != nil {
			return "", fmt.Errorf("service %s: %w", name, err)
		}
		s := &mgr.Service{Name: name, Handle: sh}
		defer func() { err = errors.Join(err, s.Close()) }()
		status, err := s.Query()
		if err != nil {
			return "", fmt.Errorf("service %s: %w", name, err)
		}
		if status.State != svc.Running {
			return "", fmt.Errorf("service %s does not run", name)
		}
		return name + " runs", nil
	}
}

// askRights: the service answers administrators and members of the group Hyper-V Administrators.
func askRights(context.Context, *env, *cli.Command) (string, error) {
	for _, group := range []struct {
		name string
		sid  windows.WELL_KNOWN_SID_TYPE
	}{
		{"Administrators", windows.WinBuiltinAdministratorsSid},
		{"Hyper-V Administrators", windows.WinBuiltinHyperVAdminsSid},
	} {
		sid, err := windows.CreateWellKnownSid(group.sid)
		if err != nil {
			return "", err
		}
		member, err := windows.Token(0).IsMember(sid)
		if err != nil {
			return "", err
		}
		if member {
			return "member of " + group.name, nil
		}
	}
	return "", errors.New("neither an elevated administrator nor in the group Hyper-V Administrators")
}

func freeSpace(dir string) (uint64, error) {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	err = windows.GetDiskFreeSpaceEx(path, &free, nil, nil)
	return free, err
}
