package nettest

import (
	"context"
	"net"
	"slices"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// TestNameServer has two at a time, which a resolver asks.
func TestNameServer(t *testing.T) {
	treetest.NeedRoot(t, "to listen at port 53")
	leaktest.Check(t)
	one, two := NameServer(t), NameServer(t)
	if one == two {
		t.Errorf("both at %s", one)
	}
	for _, server := range []string{one, two} {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(server, "53"))
		}}
		got, err := r.LookupHost(t.Context(), "some.name.example.")
		if err != nil || !slices.Equal(got, []string{Known}) {
			t.Errorf("%s: %q, %v", server, got, err)
		}
	}
	for _, odd := range []string{"", "short", string(make([]byte, 17))[:12] + "endless name"} {
		if a := answer([]byte(odd)); a != nil {
			t.Errorf("%q is answered with %q", odd, a)
		}
	}
}
