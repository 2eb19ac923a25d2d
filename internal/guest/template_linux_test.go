package guest

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/internal/guest/gcsserver"
)

// TestTemplate: a guest that is held makes all wait until it is renewed, which happens once.
func TestTemplate(t *testing.T) { synctest.Test(t, testTemplate) }

func testTemplate(t *testing.T) {
	renewals, settled := 0, 0
	var fail error
	tpl := template{settle: func() { settled++ },
		renew: func(r hcsschema.TemplateRenewal) error { renewals++; return fail }}
	modify := func(what hcsschema.RequestType) error {
		b, err := json.Marshal(hcsschema.TemplateRenewal{Entropy: make([]byte, minEntropy), Time: 1})
		if err != nil {
			t.Fatal(err)
		}
		return tpl.modify(gcsserver.Modification{RequestType: what, Settings: b})
	}
	waits := func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- tpl.await(ctx) }()
		synctest.Wait()
		did := len(ended) == 0
		cancel()
		if err := <-ended; did != errors.Is(err, context.Canceled) {
			t.Errorf("it waited: %v, and ended with %v", did, err)
		}
		return did
	}
	if err := modify(hcsschema.RequestUpdate); err != nil || renewals != 0 || waits() {
		t.Errorf("a guest that is not held: %v, renewed %d times", err, renewals)
	}
	for range 2 {
		if err := modify(hcsschema.RequestAdd); err != nil || settled == 0 || !waits() {
			t.Fatalf("held: %v, settled %d times", err, settled)
		}
	}
	done := make(chan error)
	go func() { done <- tpl.await(t.Context()) }()
	fail = errors.New("no entropy")
	if err := modify(hcsschema.RequestUpdate); !errors.Is(err, fail) || !waits() {
		t.Errorf("a renewal that fails: %v", err)
	}
	fail = nil
	for range 2 {
		if err := modify(hcsschema.RequestUpdate); err != nil || waits() || renewals != 2 {
			t.Errorf("%v, renewed %d times, want 2", err, renewals)
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := (&template{}).modify(gcsserver.Modification{RequestType: hcsschema.RequestAdd}); !errors.Is(err,
		gcsserver.ErrUnsupported) {
		t.Errorf("a guest that cannot be held: %v", err)
	}
	little := hcsschema.TemplateRenewal{Entropy: make([]byte, minEntropy-1), Time: time.Now().UnixNano()}
	if err := renew(little); !errors.Is(err, gcsserver.ErrInvalid) {
		t.Errorf("too little entropy: %v", err)
	}
}
