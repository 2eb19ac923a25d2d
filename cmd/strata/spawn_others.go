//go:build !linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
)

func spawn([]string, string) (*exec.Cmd, *net.UnixConn, error) {
	return nil, nil, fmt.Errorf("containers that outlive their command are for Linux hosts: %w", errors.ErrUnsupported)
}

func spawnAlone([]string, *os.File) error { return errors.ErrUnsupported }

func inherited(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }

func isSocket(*os.File) bool { return false }

func replace(*os.File, int) error { return errors.ErrUnsupported }
