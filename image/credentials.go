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

// Credentials are what a registry is shown. The zero value stands for none.
type Credentials struct {
	Username, Password string
	IdentityToken      string // a refresh token of OAuth 2, for the token server
	RegistryToken      string // a bearer token, for the registry itself
}

// Keychain finds the credentials for a repository, which is named in full: docker.io/library/debian,
// localhost:5000/team/app. Where there are none it returns the zero value. It is asked once for each image.
//
// An error does not keep an image from being read: the registry is asked without credentials, and the error
// becomes part of that of a registry that denies access.
type Keychain func(ctx context.Context, repository string) (Credentials, error)

// DefaultKeychain finds the credentials that docker login and podman login left: in the file named by
// REGISTRY_AUTH_FILE, docker's config.json (in DOCKER_CONFIG or ~/.docker) and podman's auth.json (below
// XDG_RUNTIME_DIR, then XDG_CONFIG_HOME or ~/.config). The first file that has some for the repository decides,
// and in it the longest key: the repository, its namespaces from the inner to the outer one, the registry.
// Credentials of another namespace are never returned. Helpers (docker-credential-NAME) that a file names are
// asked for the registry.
//
// A small reader of these files stands here, and not docker's library, since that knows no namespaces: for a
// repository it picks among the keys of one host whichever the iteration over a map finds first.
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

// authFiles returns the files that may hold credentials, the one that counts most first.
func authFiles(getenv func(string) string) []string {
	home, _ := os.UserHomeDir() // without one only what is named in the environment counts
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

// authFile is config.json of docker, and auth.json of podman.
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

// credentialsIn looks into one file. One that does not exist has none.
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

// find returns the credentials of the longest key that fits. What is wrong with one key does not keep a shorter
// one from being used.
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

// parent cuts the last element of a key; of a registry nothing is left.
func parent(key string) string {
	return key[:max(0, strings.LastIndexByte(key, '/'))]
}

// entry finds a key as it stands, and the key of a registry in the other forms that tools write too.
func (a authFile) entry(key string) (authEntry, bool) {
	if e, ok := a.Auths[key]; ok {
		return e, true
	}
	if strings.Contains(key, "/") {
		return authEntry{}, false
	}
	// Two forms of one registry in one file are told apart by their order, so that the answer is always the same.
	best := ""
	for k := range a.Auths {
		if registryOf(k) == key && (best == "" || k < best) {
			best = k
		}
	}
	return a.Auths[best], best != ""
}

// registryOf returns the registry that a key such as https://HOST/v1/ stands for, and nothing for that of a
// namespace.
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

// helped asks the helper for a registry, if the file names one.
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
