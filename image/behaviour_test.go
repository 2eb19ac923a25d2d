package image_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// behaviour is one way in which registries in the field behave.
type behaviour struct {
	name string
	// challenge is what the registry says to requests without the token, which it wants when this is set. $ME is its
	// address.
	challenge []string
	pingOpen  bool   // the first request needs no token
	token     string // the answer of the token server; empty: {"token":"tok"}
	before    func(*behaviours, http.ResponseWriter, *http.Request) bool
	want      error
	text      string // of the error; empty: the image is read
	check     func(*testing.T, *behaviours)
}

// behaviours is the registry of one behaviour, and a store that it may send to.
type behaviours struct {
	b     behaviour
	g     *imagetest.Registry
	store *httptest.Server
	big   string // digest of the layer that answers are cut in
	cuts  atomic.Int32
	fault atomic.Pointer[string]
}

func (s *behaviours) answer(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" && r.Method == http.MethodGet && s.b.name != "post-token" {
		text := s.b.token
		if text == "" {
			text = `{"token":"tok"}`
		}
		_, _ = w.Write([]byte(text))
		return true
	}
	ping := r.URL.Path == "/v2/"
	if s.b.challenge != nil && r.URL.Path != "/token" && !(ping && s.b.pingOpen) &&
		r.Header.Get("Authorization") != "Bearer tok" {
		for _, c := range s.b.challenge {
			w.Header().Add("WWW-Authenticate", strings.ReplaceAll(c, "$ME", "http://"+s.g.Host()))
		}
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":{"Tag":9}}]}`))
		return true
	}
	return s.b.before != nil && s.b.before(s, w, r)
}

// onPing answers the first request.
func onPing(answer func(http.ResponseWriter)) func(*behaviours, http.ResponseWriter, *http.Request) bool {
	return func(_ *behaviours, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			answer(w)
		}
		return r.URL.Path == "/v2/"
	}
}

// onManifest answers requests for the manifest.
func onManifest(answer func(s *behaviours, w http.ResponseWriter, digest string, b []byte)) func(*behaviours,
	http.ResponseWriter, *http.Request) bool {
	return func(s *behaviours, w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		d := s.g.Tags["v1"].Digest
		w.Header().Set("Content-Type", imagetest.OCIManifest)
		answer(s, w, d, s.g.Blobs[d])
		return true
	}
}

// onBlob answers requests for blobs.
func onBlob(answer func(s *behaviours, w http.ResponseWriter, r *http.Request, b []byte) bool) func(*behaviours,
	http.ResponseWriter, *http.Request) bool {
	return func(s *behaviours, w http.ResponseWriter, r *http.Request) bool {
		_, d, ok := strings.Cut(r.URL.Path, "/blobs/")
		return ok && answer(s, w, r, s.g.Blobs[d])
	}
}

// onCut cuts the large layer once, and lets the rest be asked for.
func onCut(rest func(w http.ResponseWriter, r *http.Request, b []byte) bool) func(*behaviours, http.ResponseWriter,
	*http.Request) bool {
	return onBlob(func(s *behaviours, w http.ResponseWriter, r *http.Request, b []byte) bool {
		if !strings.HasSuffix(r.URL.Path, s.big) {
			return false
		}
		if s.cuts.Add(1) == 1 {
			cut(w, b, len(b)/2)
		}
		return rest(w, r, b)
	})
}

func partOf(r *http.Request, b []byte) (int, []byte) {
	var from int
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); n == 1 {
		return from, b[from:]
	}
	return 0, b
}

func isResumed(t *testing.T, s *behaviours) {
	if s.cuts.Load() < 2 || s.g.Count("bytes=") == 0 {
		t.Errorf("nothing was resumed: %q", s.g.Requests())
	}
}

const bearer = `Bearer realm="$ME/token",service="s",scope="repository:org/app:pull"`

// field is what registries were seen to do, and what comes of it.
var field = []behaviour{
	{name: "plain"},
	{name: "ping200-bearer", challenge: []string{bearer}, pingOpen: true},
	{name: "ping404", before: onPing(func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) })},
	{name: "ping403", before: onPing(func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }),
		want: image.ErrDenied, text: "first request"},
	{name: "ping405", before: onPing(func(w http.ResponseWriter) { w.WriteHeader(http.StatusMethodNotAllowed) })},
	{name: "ping404-bearer", challenge: []string{bearer}, pingOpen: true,
		before: onPing(func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) })},
	{name: "ping-redirect", before: func(_ *behaviours, w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/v2/":
			http.Redirect(w, r, "/ui/", http.StatusMovedPermanently)
		case "/ui/":
			_, _ = w.Write([]byte("<html>login</html>"))
		default:
			return false
		}
		return true
	}},
	{name: "access-token", challenge: []string{bearer}, token: `{"access_token":"tok","expires_in":300}`},
	{name: "both-empty-token", challenge: []string{bearer}, token: `{"token":"","access_token":"tok"}`},
	{name: "tiny-expiry", challenge: []string{bearer},
		token: `{"token":"tok","expires_in":0,"issued_at":"2001-01-01T00:00:00Z"}`},
	{name: "no-token", challenge: []string{bearer}, token: `{}`, want: image.ErrInvalid, text: "token"},
	{name: "two-challenges", challenge: []string{`Basic realm="registry"`, bearer}},
	{name: "two-challenges-rev", challenge: []string{bearer, `Basic realm="registry"`}},
	{name: "one-header-two", challenge: []string{`Basic realm="registry", ` + bearer}},
	{name: "one-header-three", challenge: []string{`Negotiate, Basic realm="a, b \"c\"" , ` + bearer}},
	{name: "lower-bearer", challenge: []string{`bearer realm="$ME/token",service="s"`}},
	{name: "no-service", challenge: []string{`Bearer realm="$ME/token"`}},
	{name: "realm-query", challenge: []string{`Bearer realm="$ME/token?account=x",service="s"`}},
	{name: "error-first",
		challenge: []string{`Bearer error="invalid_token",realm="$ME/token",service="s",scope="repository:org/app:pull"`}},
	{name: "no-quotes", challenge: []string{`Bearer realm=$ME/token,service=s`}, want: image.ErrInvalid,
		text: "no address"},
	{name: "realm-relative", challenge: []string{`Bearer realm="/token",service="s"`}, want: image.ErrInvalid,
		text: "no address"},
	{name: "realm-file", challenge: []string{`Bearer realm="file:///etc/passwd"`}, want: image.ErrInvalid,
		text: "no address"},
	{name: "post-token", challenge: []string{bearer}, text: "405",
		before: func(_ *behaviours, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return true
		}},
	{name: "redirect-auth", challenge: []string{bearer}, before: toStore},
	{name: "redirect-307", before: toStore},
	{name: "redirect-relative", before: onBlob(func(_ *behaviours, w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.URL.RawQuery != "" {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"?x=1", http.StatusFound)
		return true
	})},
	{name: "manifest-redirect", before: func(_ *behaviours, w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || r.URL.RawQuery != "" {
			return false
		}
		http.Redirect(w, r, r.URL.Path+"?x=1", http.StatusFound)
		return true
	}},
	{name: "redirect-loop", before: func(_ *behaviours, w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			http.Redirect(w, r, r.URL.Path+"?x=1", http.StatusFound)
			return true
		}
		return false
	}, want: image.ErrInvalid, text: "redirections"},
	{name: "chunked", before: onBlob(func(_ *behaviours, w http.ResponseWriter, _ *http.Request, b []byte) bool {
		for len(b) > 0 {
			n := min(len(b), 4096)
			_, _ = w.Write(b[:n])
			w.(http.Flusher).Flush()
			b = b[n:]
		}
		return true
	})},
	{name: "http10", before: onBlob(func(_ *behaviours, w http.ResponseWriter, _ *http.Request, b []byte) bool {
		c, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = buf.WriteString("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")
		_, _ = buf.Write(b)
		_, _ = buf.Flush(), c.Close()
		return true
	})},
	{name: "cut-206", check: isResumed, before: onCut(func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		from, part := partOf(r, b)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(part)
		return true
	})},
	{name: "cut-range-lie", check: isResumed, before: onCut(func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		from, part := partOf(r, b)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, len(b)-1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(part)
		return true
	})},
	{name: "cut-norange", check: isResumed, before: onCut(func(w http.ResponseWriter, _ *http.Request, b []byte) bool {
		_, _ = w.Write(b)
		return true
	})},
	{name: "cut-416", check: isResumed, before: onCut(func(w http.ResponseWriter, r *http.Request, b []byte) bool {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		_, _ = w.Write(b)
		return true
	})},
	{name: "digest-mismatch", want: image.ErrCorrupt, text: "announced was",
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, b []byte) {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			_, _ = w.Write(b)
		})},
	{name: "digest-lowercase-odd", want: image.ErrCorrupt, text: "announced was",
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, d string, b []byte) {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.ToUpper(strings.TrimPrefix(d, "sha256:")))
			_, _ = w.Write(b)
		})},
	{name: "no-digest-header", before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, b []byte) {
		_, _ = w.Write(b)
	})},
	{name: "type-plain", before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, b []byte) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(b)
	})},
	{name: "gzip-json", before: onManifest(func(_ *behaviours, w http.ResponseWriter, d string, b []byte) {
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(b)
		_ = z.Close()
	})},
	{name: "gzip-bomb", want: image.ErrTooLarge, text: "more than",
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, _ []byte) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 64<<20))
			_ = z.Close()
		})},
	{name: "octet-gzip-encoding", before: onBlob(func(_ *behaviours, w http.ResponseWriter, _ *http.Request,
		b []byte) bool {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(b)
		return true
	})},
	{name: "error-detail", text: "MANIFEST_UNKNOWN: no such tag", want: image.ErrNotFound,
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, _ []byte) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag","detail":{"Tag":9}}]}`))
		})},
	{name: "error-page", text: "answer 418",
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, _ []byte) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write([]byte("<html>\x1b[31mred</html>"))
		})},
	{name: "error-terminal", text: "answer 418",
		before: onManifest(func(_ *behaviours, w http.ResponseWriter, _ string, _ []byte) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = w.Write([]byte("\x1b[31mred\r\nsecond line"))
		})},
}

// toStore sends requests for blobs to a store that wants no credentials of another server.
func toStore(s *behaviours, w http.ResponseWriter, r *http.Request) bool {
	_, d, ok := strings.Cut(r.URL.Path, "/blobs/")
	if ok {
		http.Redirect(w, r, s.store.URL+"/store/"+d+"?sig=abc", http.StatusTemporaryRedirect)
	}
	return ok
}

// TestRegistryBehaviours: an image is read from registries that behave as those in the field do, or the error says
// which step failed and why.
func TestRegistryBehaviours(t *testing.T) {
	blobs, d, tars := good(t)
	for _, b := range field {
		t.Run(b.name, func(t *testing.T) {
			leaktest.Check(t)
			s := &behaviours{b: b, g: imagetest.NewRegistry(t, blobs), big: imagetest.Digest(tars[2])}
			s.g.Tags["v1"] = d
			s.g.Before = s.answer
			s.store = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "" {
					what := "the store was shown " + r.Header.Get("Authorization")
					s.fault.Store(&what)
					w.WriteHeader(http.StatusBadRequest)
					return
				}
				_, _ = w.Write(blobs[strings.TrimPrefix(r.URL.Path, "/store/")])
			}))
			t.Cleanup(s.store.Close)
			img, err := open(t, s.g.Host()+"/org/app:v1", impatient())
			var got [][]byte
			if err == nil {
				got, err = read(t.Context(), img)
			}
			if what := s.fault.Load(); what != nil {
				t.Error(*what)
			}
			if b.text != "" {
				if err == nil || b.want != nil && !errors.Is(err, b.want) || !strings.Contains(err.Error(), b.text) {
					t.Fatalf("error %v, want %v with %q", err, b.want, b.text)
				}
				for _, bad := range []string{"map[", "authentication:", "\x1b", "\n", "<html>"} {
					if strings.Contains(err.Error(), bad) {
						t.Errorf("%q in the error: %v", bad, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\nrequests: %q", err, s.g.Requests())
			}
			for i := range tars {
				if !bytes.Equal(got[i], tars[i]) {
					t.Errorf("layer %d differs", i)
				}
			}
			if b.check != nil {
				b.check(t, s)
			}
		})
	}
}

// TestRegistryErrors: an error begins with its cause and says which step of which registry it was.
func TestRegistryErrors(t *testing.T) {
	quick := impatient()
	quick.Retries = -1
	for _, tt := range []struct{ source, text, not string }{
		{"127.0.0.1:1/org/app:v1", "image docker://127.0.0.1:1/org/app:v1: connection refused: nothing listens there: " +
			"registry 127.0.0.1:1, first request", "over TLS"},
	} {
		_, err := open(t, tt.source, quick)
		if err == nil || !strings.HasPrefix(err.Error(), tt.text) || strings.Contains(err.Error(), tt.not) {
			t.Errorf("error %v, want %q first and no %q", err, tt.text, tt.not)
		}
	}
}

// TestRegistryRetriesAreTold: whoever waits learns why.
func TestRegistryRetriesAreTold(t *testing.T) {
	blobs, d, _ := good(t)
	g := imagetest.NewRegistry(t, blobs)
	g.Tags["v1"] = d
	g.Before = once(func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") },
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	o := impatient()
	var told []image.Retry
	o.OnRetry = func(r image.Retry) {
		if r.Step == "manifest v1" {
			told = append(told, r)
		}
	}
	if _, err := open(t, g.Host()+"/org/app:v1", o); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0].Registry != g.Host() || told[0].Attempt != 2 || told[0].Attempts != 6 ||
		told[0].Pause <= 0 || !strings.Contains(told[0].Err.Error(), "502") {
		t.Errorf("told %+v", told)
	}
}
