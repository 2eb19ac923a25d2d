package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
)

// Credentials are the credentials for a registry. The zero value means none.
type Credentials struct {
	Username, Password string
	IdentityToken      string // a refresh token of OAuth 2, for the token server
	RegistryToken      string // a bearer token, for the registry itself
}

// Keychain returns the credentials for a repository with a full name: docker.io/library/debian,
// localhost:5000/team/app. If there are none, it returns the zero value. It is called once per image.
//
// If it fails, the image is requested without credentials; if the registry denies access, its error includes that of
// the Keychain.
type Keychain func(ctx context.Context, repository string) (Credentials, error)

// DefaultKeychain returns the credentials stored by docker login and podman login: in the file named by
// REGISTRY_AUTH_FILE, docker's config.json (in DOCKER_CONFIG or ~/.docker) and podman's auth.json (below
// XDG_RUNTIME_DIR, then XDG_CONFIG_HOME or ~/.config). The first file with credentials for the repository is used, and
// in it the longest matching key: the repository, its namespaces from inner to outer, the registry. Credentials of
// another namespace are never returned. Credential helpers (docker-credential-NAME) configured in a file are asked for
// the registry.
//
// It does not use docker's library, which does not support namespaces: among several keys for the same host it picks
// one at random (map order).
func DefaultKeychain(ctx context.Context, repository string) (Credentials, error) {
	var errs []error
	for _, path := range authFiles(os.Getenv) {
		c, err := credentialsIn(ctx, path, repository)
		if c != (Credentials{}) {
			return c, nil
		}
		errs = append(errs, err)
	}
	return Credentials{}, errors.Join(errs...)
}

// authFiles returns the files that may have credentials, in order of precedence.
func authFiles(getenv func(string) string) []string {
	home, _ := os.UserHomeDir() // on error, only files named in the environment are used
	var out []string
	add := func(dir string, elem ...string) {
		if dir != "" {
			out = append(out, filepath.Join(append([]string{dir}, elem...)...))
		}
	}
	add(getenv("REGISTRY_AUTH_FILE"))
	if dir := getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(home, ".docker", "config.json")
	}
	add(getenv("XDG_RUNTIME_DIR"), "containers", "auth.json")
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers", "auth.json")
	} else {
		add(home, ".config", "containers", "auth.json")
	}
	return out
}

const maxAuthFile = 4 << 20

// authFile is docker's config.json or podman's auth.json.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
}

type authEntry struct {
	Auth          string `json:"auth"` // base64 of USER:PASSWORD
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func (e authEntry) credentials() (Credentials, error) {
	c := Credentials{Username: e.Username, Password: e.Password,
		IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, ok := strings.Cut(string(b), ":")
		if err != nil || !ok {
			return Credentials{}, errors.New(`"auth" is not the base64 of USER:PASSWORD; log in again`)
		}
		// Docker pads passwords with zeros.
		c.Username, c.Password = user, strings.Trim(password, "\x00")
	}
	if c.IdentityToken != "" {
		c.Username, c.Password = "", ""
	}
	return c, nil
}

// credentialsIn looks up the credentials in one file. A missing file has none.
func credentialsIn(ctx context.Context, path, repository string) (Credentials, error) {
	b, err := regfile.Read(path, maxAuthFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(strings.TrimSpace(string(b))) == 0 {
		return Credentials{}, nil
	}
	var file authFile
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		return Credentials{}, fmt.Errorf("credentials in %s: %w", path, err)
	}
	c, err := file.find(ctx, repository)
	if err != nil {
		return c, fmt.Errorf("credentials in %s: %w", path, err)
	}
	return c, nil
}

// find returns the credentials of the longest matching key. If an entry is invalid, shorter keys are tried.
func (a authFile) find(ctx context.Context, repository string) (Credentials, error) {
	var errs []error
	host, _, _ := strings.Cut(repository, "/")
	for key := repository; key != ""; key = parent(key) {
		if key == host {
			c, err := a.helped(ctx, host)
			if c != (Credentials{}) {
				return c, nil
			}
			errs = append(errs, err)
		}
		e, ok := a.entry(key)
		if !ok {
			continue
		}
		c, err := e.credentials()
		if c != (Credentials{}) {
			return c, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	return Credentials{}, errors.Join(errs...)
}

// parent removes the last element of a key; the parent of a registry is "".
func parent(key string) string {
	return key[:max(0, strings.LastIndexByte(key, '/'))]
}

// entry returns the entry of a key; for a registry it also finds the other spellings that tools use.
func (a authFile) entry(key string) (authEntry, bool) {
	if e, ok := a.Auths[key]; ok {
		return e, true
	}
	if strings.Contains(key, "/") {
		return authEntry{}, false
	}
	// If several spellings of a registry match, use the first in sort order, so that the result is deterministic.
	best := ""
	for k := range a.Auths {
		if registryOf(k) == key && (best == "" || k < best) {
			best = k
		}
	}
	return a.Auths[best], best != ""
}

// registryOf returns the registry of a key such as https://HOST/v1/, and "" for a key of a namespace.
func registryOf(key string) string {
	rest, scheme := strings.CutPrefix(key, "https://")
	if !scheme {
		rest, scheme = strings.CutPrefix(key, "http://")
	}
	host, path, _ := strings.Cut(rest, "/")
	if path = strings.Trim(path, "/"); path != "" && !(scheme && (path == "v1" || path == "v2")) {
		return "" // a namespace
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// helped asks the credential helper for a registry, if one is configured.
func (a authFile) helped(ctx context.Context, host string) (Credentials, error) {
	name := a.CredHelpers[host]
	server := host
	if host == "docker.io" {
		server = "https://index.docker.io/v1/"
		for _, key := range []string{server, "index.docker.io"} {
			if name == "" {
				name = a.CredHelpers[key]
			}
		}
	}
	if name == "" {
		name = a.CredsStore
	}
	if name == "" {
		return Credentials{}, nil
	}
	return askHelper(ctx, name, server)
}
