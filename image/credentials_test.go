package image_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
)

// noCredentials is an environment in which nobody has logged in; it returns a folder for docker's configuration.
func noCredentials(t *testing.T) string {
	home := t.TempDir()
	for _, name := range []string{"HOME", "USERPROFILE"} {
		t.Setenv(name, home)
	}
	for _, name := range []string{"REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(name, "")
	}
	dir := filepath.Join(home, "docker")
	t.Setenv("DOCKER_CONFIG", dir)
	return dir
}

func writeAuth(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// private is a registry that lets only al in, and remembers whom else it saw.
func private(t *testing.T) (g *imagetest.Registry, seen func() []string) {
	blobs, d, _ := good(t)
	g = imagetest.NewRegistry(t, blobs)
	g.Tags["v1"] = d
	var mu sync.Mutex
	var users []string
	g.Before = func(w http.ResponseWriter, r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		if u == "al" && p == "p:wü" {
			return false
		}
		if ok {
			mu.Lock()
			defer mu.Unlock()
			users = append(users, u+":"+p)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	return g, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return users
	}
}

// TestCredentials: every form in which logins are kept is understood, and what is wrong in a file is no reason not to
// ask without credentials, but is told when that is denied.
func TestCredentials(t *testing.T) {
	g, _ := private(t)
	blobs, d, _ := good(t)
	public := imagetest.NewRegistry(t, blobs)
	public.Tags["v1"] = d
	right := base64.StdEncoding.EncodeToString([]byte("al:p:wü"))
	padded := base64.StdEncoding.EncodeToString([]byte("al:p:wü\x00\x00"))
	auth := func(key string) string { return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, key, right) }
	h := g.Host()
	for _, tt := range []struct {
		name, config string
		public       bool   // the registry lets everybody in
		text         string // of the error of the private registry; empty: the image is read
	}{
		{name: "host", config: auth(h)},
		{name: "host with a slash", config: auth(h + "/")},
		{name: "https", config: auth("https://" + h)},
		{name: "http", config: auth("http://" + h)},
		{name: "https, v1", config: auth("https://" + h + "/v1/")},
		{name: "https, v2", config: auth("https://" + h + "/v2/")},
		{name: "namespace", config: auth(h + "/team")},
		{name: "repository", config: auth(h + "/team/app")},
		{name: "user and password", config: fmt.Sprintf(`{"auths":{%q:{"username":"al","password":"p:wü"}}}`, h)},
		{name: "padded password", config: fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, h, padded)},
		{name: "missing store", config: `{"credsStore":"missing"}`, public: true},
		{name: "missing store beside a login",
			config: fmt.Sprintf(`{"credsStore":"missing","auths":{%q:{"auth":%q}}}`, h, right)},
		{name: "missing helper of another registry", config: `{"credHelpers":{"gcr.io":"gcloud"}}`, public: true},
		{name: "missing helper", config: fmt.Sprintf(`{"credHelpers":{%q:"missing"}}`, public.Host()), public: true},
		{name: "helper that is a path", config: `{"credsStore":"x/../../bin/sh"}`, public: true},
		{name: "empty file", public: true},
		{name: "broken JSON", config: `{"auths":`, public: true},
		{name: "bad base64", config: fmt.Sprintf(`{"auths":{%q:{"auth":"%%%%%%"}}}`, public.Host()), public: true},
		{name: "empty login", config: fmt.Sprintf(`{"auths":{%q:{}}}`, public.Host()), public: true},
		{name: "nothing, denied", config: "{}", text: "denies access"},
		{name: "missing store, denied", config: `{"credsStore":"missing"}`, text: "docker-credential-missing"},
		{name: "broken JSON, denied", config: `{"auths":`, text: "config.json"},
		{name: "bad base64, denied", config: fmt.Sprintf(`{"auths":{%q:{"auth":"%%%%%%"}}}`, h), text: "log in again"},
		{name: "address of a namespace", config: auth("https://" + h + "/team"), text: "denies access"},
		{name: "part of a name", config: auth(h + "/te"), text: "denies access"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			writeAuth(t, filepath.Join(noCredentials(t), "config.json"), tt.config)
			host := h
			if tt.public {
				host = public.Host()
			}
			o := impatient()
			o.Keychain = nil
			img, err := open(t, host+"/team/app:v1", o)
			if err == nil {
				_, err = read(t.Context(), img)
			}
			switch {
			case tt.text == "" && err != nil:
				t.Error(err)
			case tt.text != "" && (!errors.Is(err, image.ErrDenied) || !strings.Contains(err.Error(), tt.text)):
				t.Errorf("error %v, want %v with %q", err, image.ErrDenied, tt.text)
			}
			if err != nil && strings.Contains(err.Error(), right) {
				t.Errorf("the credentials are in the error: %v", err)
			}
		})
	}
}

// TestCredentialsOfNamespaces: the longest key that is a prefix counts, and the login of one namespace is never shown
// for another.
func TestCredentialsOfNamespaces(t *testing.T) {
	g, seen := private(t)
	right := base64.StdEncoding.EncodeToString([]byte("al:p:wü"))
	wrong := base64.StdEncoding.EncodeToString([]byte("bob:wrong"))
	for _, tt := range []struct {
		name string
		keys map[string]string // below the registry
		want error
	}{
		{"team right, other wrong", map[string]string{"/team": right, "/other": wrong}, nil},
		{"team/app right, other wrong", map[string]string{"/other": wrong, "/team/app": right}, nil},
		{"host wrong, team right", map[string]string{"": wrong, "/team": right}, nil},
		{"only other", map[string]string{"/other": right}, image.ErrDenied},
		{"a longer name", map[string]string{"/team/app2": right, "/tea": right}, image.ErrDenied},
		{"deeper", map[string]string{"/team/app/x": right}, image.ErrDenied},
		{"team right, zeta wrong", map[string]string{"/team": right, "/zeta": wrong}, nil},
		{"team right, aaa and zeta wrong", map[string]string{"/aaa": wrong, "/team": right, "/zeta": wrong}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var parts []string
			for key, auth := range tt.keys {
				parts = append(parts, fmt.Sprintf("%q:{\"auth\":%q}", g.Host()+key, auth))
			}
			writeAuth(t, filepath.Join(noCredentials(t), "config.json"), `{"auths":{`+strings.Join(parts, ",")+`}}`)
			o := impatient()
			o.Keychain = nil
			for range 10 { // what depends on the order of a map does not always show
				if _, err := open(t, g.Host()+"/team/app:v1", o); !errors.Is(err, tt.want) {
					t.Fatalf("error %v, want %v", err, tt.want)
				}
			}
		})
	}
	if s := seen(); len(s) > 0 {
		t.Errorf("other logins were sent: %q", s)
	}
}

// TestCredentialFiles: all files count, in their order.
func TestCredentialFiles(t *testing.T) {
	entry := func(user string) string {
		return fmt.Sprintf(`{"auths":{"registry.example":{"auth":%q}}}`, base64.StdEncoding.EncodeToString([]byte(user+":p")))
	}
	docker := noCredentials(t)
	home := filepath.Dir(docker)
	for _, tt := range []struct{ path, env, value string }{
		{filepath.Join(home, ".config", "containers", "auth.json"), "", ""},
		{filepath.Join(home, "run", "containers", "auth.json"), "XDG_RUNTIME_DIR", filepath.Join(home, "run")},
		{filepath.Join(docker, "config.json"), "", ""},
		{filepath.Join(home, "auth.json"), "REGISTRY_AUTH_FILE", filepath.Join(home, "auth.json")},
	} { // each counts more than those before
		if tt.env != "" {
			t.Setenv(tt.env, tt.value)
		}
		writeAuth(t, tt.path, entry(tt.path))
		c, err := image.DefaultKeychain(t.Context(), "registry.example/a/b")
		if user, _, _ := strings.Cut(tt.path, ":"); err != nil || c.Username != user {
			t.Errorf("with %s: user %q, %v", tt.path, c.Username, err)
		}
	}
	if c, err := image.DefaultKeychain(t.Context(), "other.example/a"); err != nil || c != (image.Credentials{}) {
		t.Errorf("another registry: %+v, %v", c, err)
	}
}

// TestCredentialHelpers: helpers are asked as docker asks them.
func TestCredentialHelpers(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the helper is a shell script")
	}
	bin := t.TempDir()
	helper := `#!/bin/sh
read -r server
case $1:$server in
get:registry.example) echo '{"ServerURL":"x","Username":"u","Secret":"s"}' ;;
get:https://index.docker.io/v1/) echo '{"Username":"<token>","Secret":"refresh"}' ;;
get:broken.example) echo secret ;;
get:fails.example) echo "the vault is sealed" >&2; exit 1 ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := noCredentials(t)
	t.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	writeAuth(t, filepath.Join(dir, "config.json"),
		`{"credsStore":"test","auths":{"own.example/ns":{"username":"n","password":"p"}}}`)
	for _, tt := range []struct {
		repository, text string
		want             image.Credentials
	}{
		{repository: "registry.example/a/b", want: image.Credentials{Username: "u", Password: "s"}},
		{repository: "docker.io/library/debian", want: image.Credentials{IdentityToken: "refresh"}},
		{repository: "own.example/ns/app", want: image.Credentials{Username: "n", Password: "p"}},
		{repository: "none.example/a"},
		{repository: "broken.example/a", text: "no JSON"},
		{repository: "fails.example/a", text: "the vault is sealed"},
	} {
		c, err := image.DefaultKeychain(t.Context(), tt.repository)
		if c != tt.want || (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %+v, %v; want %+v, %q", tt.repository, c, err, tt.want, tt.text)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the secret is in the error: %v", err)
		}
	}
}

// TestIdentityToken: a refresh token goes to the token server, and where that does not know OAuth 2 nothing is lost.
func TestIdentityToken(t *testing.T) {
	blobs, d, _ := good(t)
	for _, oauth := range []bool{true, false} {
		g := imagetest.NewRegistry(t, blobs)
		g.Tags["v1"] = d
		g.Before = func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.URL.Path == "/token" && r.Method == http.MethodPost && oauth:
				if r.FormValue("refresh_token") != "refresh" || r.FormValue("scope") != "repository:org/app:pull" {
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				_, _ = w.Write([]byte(`{"access_token":"tok"}`))
			case r.URL.Path == "/token" && r.Method == http.MethodGet:
				_, _ = w.Write([]byte(`{"token":"tok"}`))
			case r.URL.Path == "/token":
				w.WriteHeader(http.StatusNotFound)
			case r.Header.Get("Authorization") == "Bearer tok":
				return false
			default:
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, g.Host()))
				w.WriteHeader(http.StatusUnauthorized)
			}
			return true
		}
		writeAuth(t, filepath.Join(noCredentials(t), "config.json"),
			fmt.Sprintf(`{"auths":{%q:{"auth":"PDp4","identitytoken":"refresh"}}}`, g.Host()))
		o := impatient()
		o.Keychain = nil
		if _, err := open(t, g.Host()+"/org/app:v1", o); err != nil {
			t.Errorf("oauth %v: %v", oauth, err)
		}
	}
}
