package qemu

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stratavm/strata/internal/bootid"
	"github.com/stratavm/strata/test/leaktest"
	"github.com/stratavm/strata/vmm"
)

func TestKVMFlags(t *testing.T) {
	for info, works := range map[string]bool{
		"processor : 0\nflags\t\t: fpu vme vmx ssse3\n": true,
		"processor : 0\nflags\t\t: fpu svm\n":           true,
		"processor : 0\nflags\t\t: fpu vmxoff\n":        false,
		"model name : vmx svm\n":                        false,
		"":                                              false,
	} {
		if err := kvmFlags(info); (err == nil) != works {
			t.Errorf("%q: %v", info, err)
		}
	}
}

func TestKVMFailureIsRemembered(t *testing.T) {
	c, err := Config{Dir: "/x", CacheDir: t.TempDir()}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	c.kvmUsable = func() error { return nil }
	kvmRemember(c, os.ErrInvalid)
	b, err := os.ReadFile(kvmFile(c))
	boot, bootErr := bootid.Read()
	if err != nil || bootErr != nil || string(b) != boot || len(b) == 0 {
		t.Fatalf("%q %v", b, err)
	}
	if err := kvmWorth(c); err == nil || !strings.Contains(err.Error(), kvmFile(c)) {
		t.Errorf("KVM is tried again: %v", err)
	}
	if err := os.WriteFile(kvmFile(c), []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := kvmWorth(c); err != nil {
		t.Errorf("KVM is not tried after the host booted again: %v", err)
	}
}

// TestKVMTrial: where KVM seems to be there, a machine runs with it or else without it; a failure is
// remembered, so that the next machine is not tried out.
func TestKVMTrial(t *testing.T) {
	for name, tc := range map[string]struct {
		works  bool
		accel  string
		trials int // of two starts
	}{
		"works":         {true, AccelKVM, 2},
		"does not work": {false, AccelTCG, 1},
	} {
		t.Run(name, func(t *testing.T) {
			needQEMU(t)
			leaktest.Check(t)
			trials, cache := 0, t.TempDir()
			for range 2 {
				c := Config{Dir: filepath.Join(t.TempDir(), "vm"), CacheDir: cache, connect: (&fakeGuest{}).connect,
					kvmUsable: func() error { return nil },
					rewrite: func(args []string) []string {
						args = slices.Clone(args)
						if i := slices.Index(args, "-accel"); args[i+1] == AccelKVM {
							trials++
							if args[i+1] = AccelTCG; !tc.works { // no host of these tests need have KVM
								args[i+1] = "no-such-accelerator"
							}
						}
						return args
					}}
				m, err := Start(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				info, err := Inspect(c.Dir)
				if err != nil || info.Accel != tc.accel || !info.Running {
					t.Errorf("the machine is %+v, %v, want one with %s", info, err, tc.accel)
				}
				end(t, m)
			}
			if trials != tc.trials {
				t.Errorf("KVM was tried %d times, want %d", trials, tc.trials)
			}
		})
	}
}

// TestKVMKilled: a QEMU that is killed while it boots is not taken for a fault of KVM.
func TestKVMKilled(t *testing.T) {
	needQEMU(t)
	leaktest.Check(t)
	var accels []string
	c := Config{Dir: filepath.Join(t.TempDir(), "vm"), CacheDir: t.TempDir(), kvmUsable: func() error { return nil },
		rewrite: func(args []string) []string {
			args = slices.Clone(args)
			i := slices.Index(args, "-accel") + 1
			accels, args[i] = append(accels, args[i]), AccelTCG // no host of these tests need have KVM
			return args
		}}
	c.connect = func(ctx context.Context, _ net.Conn, _ *slog.Logger) (guest, error) {
		info, err := Inspect(c.Dir)
		if err == nil {
			err = unix.Kill(info.PID, unix.SIGKILL)
		}
		if err != nil {
			t.Error(err)
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if _, err := Start(t.Context(), c); !errors.Is(err, vmm.ErrGone) || !errors.Is(err, errKilled) {
		t.Errorf("the start: %v", err)
	}
	if !slices.Equal(accels, []string{AccelKVM}) {
		t.Errorf("it was tried with %q", accels)
	}
	if err := kvmWorth(c); err != nil {
		t.Error(err)
	}
}
