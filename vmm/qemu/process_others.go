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
	"time"

	"github.com/stratavm/strata/vmm"
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
	_, _ = c.rewrite, c.idle // for the other half
	return nil, errHost
}

func openVSock() (*vsockDevice, error) { return nil, errHost }

func kvmUsable() error { return errHost }

type network struct {
	Socket, Life *os.File
	server       *process
}

func (n *network) handOver() {}

func startNetwork(context.Context, string, int, vmm.NIC) (*network, error) {
	_ = networkDir // for the other half
	return nil, errHost
}

func endUnconnected(string) {}

const nonBlock = 0

func memoryFile(string, io.Reader, int64) (*os.File, error) { return nil, errHost }

func sendFile(net.Conn, []byte, *os.File) (int, error) { return 0, errHost }

func openProcess(int, uint64, string) (*process, error) { return nil, errHost }

type serverOptions struct{ dir, note string }

type server struct {
	proc *process
	conn *os.File
}

func (*server) words(context.Context) string { return "" }

func startServer(_ vmm.VirtioFSShare, o serverOptions) (*server, error) {
	return nil, fmt.Errorf("%s, %s: %w", o.dir, o.note, errHost)
}

// FindServer returns virtiofsd's path.
func FindServer() (string, error) { return "", errHost }

// CanShare returns an error unless n folders and files of this host can be shared with a machine.
func CanShare(int) error { return errHost }

func freeBytes(string) (uint64, error) { return 0, errHost }

func startTemplated(context.Context, Config, string) (*Machine, error) {
	_ = guestMemory{}.f // for the other half
	return nil, errHost
}

// MakeTemplate makes the template of a kind of machine.
func MakeTemplate(context.Context, Config) (made bool, err error) { return false, errHost }

// Templates lists the templates in a cache directory.
func Templates(string) ([]TemplateInfo, error) { return nil, nil }

// RemoveTemplates removes the templates in a cache directory that were not used since the time given.
func RemoveTemplates(context.Context, string, time.Time, bool) ([]TemplateInfo, error) {
	return nil, nil
}
