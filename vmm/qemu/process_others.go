//go:build !linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
)

var errNoProcess = errors.New("the QEMU process does not run any more")

var errHost = fmt.Errorf("the QEMU driver on a %s host: %w", runtime.GOOS, errors.ErrUnsupported)

type process struct {
	pid    int
	exited chan struct{}
	ending string
}

func (p *process) kill() error                    { return errHost }
func (p *process) close()                         {}
func (p *process) waitExit(context.Context) error { return errHost }

func findProcess(string) (*process, error) { return nil, errHost }

func dialSocket(context.Context, string, string) (net.Conn, error) { return nil, errHost }

func machineUser(string) (int, error) { return 0, errHost }

func launch(c Config, _ string, _ int, _ *vsockDevice) (*process, error) {
	_ = c.rewrite // for tests of the other half
	return nil, errHost
}

func openVSock() (*vsockDevice, error) { return nil, errHost }

func kvmUsable() error { return errHost }

const nonBlock = 0

func memoryFile(string, io.Reader, int64) (*os.File, error) { return nil, errHost }

func sendFile(net.Conn, []byte, *os.File) (int, error) { return 0, errHost }

func freeBytes(string) (uint64, error) { return 0, errHost }
