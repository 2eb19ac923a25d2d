package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
)

type keychain struct{ user, password string }

func (k keychain) find(context.Context, string) (image.Credentials, error) {
	return image.Credentials{Username: k.user, Password: k.password}, nil
}

// basicAuth lets through who knows the password.
func basicAuth(_ *imagetest.Registry, w http.ResponseWriter, r *http.Request) bool {
	if u, p, _ := r.BasicAuth(); u == "me" && p == "secret" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// TestRegistryAuth: basic credentials and tokens, one of which expires in the middle.
func TestRegistryAuth(t *testing.T) {
	blobs, d, _ := good(t)
	var issued, used atomic.Int32
	token := func(g *imagetest.Registry, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" ||
				!strings.Contains(r.URL.Query().Get("scope"), "repository:org/app:pull") {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			used.Store(0)
			_ = json.NewEncoder(w).Encode(map[string]any{"token": fmt.Sprintf("t%d", issued.Add(1))})
			return true
		}
		// A token serves two requests.
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", issued.Load()) && used.Add(1) <= 2 {
			return false
		}
		w.Header().Set("WWW-Authenticate",
			fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:org/app:pull"`, g.Host()))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	for _, tt := range []struct {
		name string
		auth func(*imagetest.Registry, http.ResponseWriter, *http.Request) bool
	}{{"basic", basicAuth}, {"token", token}} {
		for _, k := range []keychain{{"me", "secret"}, {"me", "wrong"}} {
			t.Run(tt.name+" "+k.password, func(t *testing.T) {
				g := imagetest.NewRegistry(t, blobs)
				g.Tags["v1"] = d
				g.Before = func(w http.ResponseWriter, r *http.Request) bool { return tt.auth(g, w, r) }
				o := impatient()
				o.Keychain = k.find
				img, err := open(t, g.Host()+"/org/app:v1", o)
				if err == nil {
					_, err = read(t.Context(), img)
				}
				if k.password == "secret" && err != nil {
					t.Fatalf("%v\nrequests: %q", err, g.Requests())
				}
				if k.password == "wrong" && (!errors.Is(err, image.ErrDenied) ||
					!strings.Contains(err.Error(), "docker login "+g.Host())) {
					t.Errorf("error %v, want %v with the remedy", err, image.ErrDenied)
				}
				if err != nil && strings.Contains(err.Error(), k.password) {
					t.Errorf("the password is in the error: %v", err)
				}
			})
		}
	}
	if issued.Load() < 2 {
		t.Errorf("%d tokens were issued; one should have expired", issued.Load())
	}
}
