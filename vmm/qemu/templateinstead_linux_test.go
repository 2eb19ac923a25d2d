package qemu

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/gcs"
)

// deadlines is a guest that answers with an error where it is to wait for its renewal, and notes whether whoever asks
// waits for ever.
type deadlines struct {
	guest
	hold    error
	forEver *bool
}

func (g deadlines) Modify(ctx context.Context, r hcsschema.GuestRequest) error {
	if r.ResourceType == hcsschema.ResourceTemplate && r.RequestType == hcsschema.RequestAdd {
		_, limited := ctx.Deadline()
		*g.forEver = !limited
		return g.hold
	}
	return g.guest.Modify(ctx, r)
}

// TestTemplateBootInstead: a machine of which no template can be made runs, booted once more where the first one is of
// no use: QEMU does not start as it is to be saved, or it is not known what the guest does.
func TestTemplateBootInstead(t *testing.T) {
	img := image(t)
	for what, test := range map[string]struct {
		hold    error
		without string // a device that QEMU lacks
		starts  int
	}{
		"no vmgenid":           {without: "vmgenid,guid=auto", starts: 2},
		"a guest that hangs":   {hold: context.DeadlineExceeded, starts: 2},
		"a guest that refuses": {hold: &gcs.Error{Op: "hold", Result: gcs.ResultNotSupported}, starts: 1},
	} {
		t.Run(what, func(t *testing.T) {
			var log said
			starts, forEver, fake := 0, false, &fakeGuest{}
			c := Config{Dir: filepath.Join(t.TempDir(), "vm"), Accel: AccelTCG, Kernel: img.Kernel, Template: true,
				ImageID: img.ID, CacheDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil)),
				connect: func(ctx context.Context, conn net.Conn, log *slog.Logger) (guest, error) {
					g, err := fake.connect(ctx, conn, log)
					return deadlines{g, test.hold, &forEver}, err
				},
				rewrite: func(args []string) []string {
					starts++
					if i := slices.Index(args, test.without); i >= 0 {
						args[i] = "no-such-device"
					}
					return args
				}}
			m, err := Start(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { end(t, m) })
			if starts != test.starts || log.count("boots instead of being loaded") != test.starts-1 {
				t.Errorf("QEMU was started %d times, want %d: %s", starts, test.starts, log.b.String())
			}
			if forEver {
				t.Error("the guest may take for ever")
			}
			if err := m.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			if all, err := Templates(c.CacheDir); err != nil || len(all) != 0 {
				t.Errorf("there are the templates %v (%v)", all, err)
			}
		})
	}
}
