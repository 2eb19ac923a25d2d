package imagetest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Registry is a registry on loopback, over plain HTTP.
type Registry struct {
	Blobs Blobs
	Tags  map[string]Descriptor
	// Before, when set, sees each request first; true says that it has answered.
	Before func(w http.ResponseWriter, r *http.Request) bool

	server *httptest.Server
	mu     sync.Mutex
	log    []string
}

// NewRegistry starts a registry that ends with the test.
func NewRegistry(t testing.TB, blobs Blobs) *Registry {
	t.Helper()
	g := &Registry{Blobs: blobs, Tags: map[string]Descriptor{}}
	g.server = httptest.NewServer(g)
	t.Cleanup(g.server.Close)
	return g
}

// Host is the host and port.
func (g *Registry) Host() string { return strings.TrimPrefix(g.server.URL, "http://") }

// Requests lists what was asked: method, path and range.
func (g *Registry) Requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.log...)
}

// Count is the number of requests whose text contains s.
func (g *Registry) Count(s string) (n int) {
	for _, r := range g.Requests() {
		if strings.Contains(r, s) {
			n++
		}
	}
	return n
}

func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	g.log = append(g.log, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	g.mu.Unlock()
	if g.Before != nil && g.Before(w, r) {
		return
	}
	g.Answer(w, r)
}

// Answer answers as a good registry does.
func (g *Registry) Answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	_, id, ok := strings.Cut(r.URL.Path, "/manifests/")
	if !ok {
		_, id, ok = strings.Cut(r.URL.Path, "/blobs/")
	} else if d, tagged := g.Tags[id]; tagged {
		id = d.Digest
	}
	b, found := g.Blobs[id]
	if !ok || !found {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"not here"}]}`))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if strings.Contains(r.URL.Path, "/manifests/") {
		var m struct {
			MediaType string `json:"mediaType"`
		}
		if json.Unmarshal(b, &m) == nil && m.MediaType != "" {
			w.Header().Set("Content-Type", m.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", id)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}
