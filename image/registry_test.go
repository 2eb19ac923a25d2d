package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/test/imagetest"
	"github.com/stratavm/strata/test/leaktest"
)

// impatient are options that do not make a test wait.
func impatient() image.Options {
	return image.Options{Platform: amd64, Backoff: time.Millisecond, Keychain: keychain{}.find}
}

// cut answers with the first part of a blob and breaks the connection.
func cut(w http.ResponseWriter, b []byte, n int) {
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b[:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// once returns the first request that matches to answer.
func once(match func(*http.Request) bool,
	answer func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !match(r) || n.Add(1) > 1 {
			return false
		}
		answer(w, r)
		return true
	}
}

// TestRegistryFaults: what passes is got over, what does not is named.
func TestRegistryFaults(t *testing.T) {
	blobs, d, tars := good(t)
	plain := imagetest.Digest(tars[2]) // the layer without compression, 400 kB
	isBlob := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, plain) }
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	isToken := func(r *http.Request) bool { return r.URL.Path == "/token" }
	for _, tt := range []struct {
		name   string
		before func(*imagetest.Registry) func(w http.ResponseWriter, r *http.Request) bool
		o      func(*image.Options)
		want   error
		text   string
		check  func(*testing.T, *imagetest.Registry)
	}{
		{name: "restart in the middle", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) && n.Add(1) == 1 {
					cut(w, tars[2], 100_000)
				}
				return false
			}
		}, check: func(t *testing.T, g *imagetest.Registry) {
			if g.Count("bytes=") == 0 {
				t.Errorf("nothing was resumed: %q", g.Requests())
			}
		}},
		{name: "cut again and again, with a little more each time",
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return func(w http.ResponseWriter, r *http.Request) bool {
					var from int
					_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
					if isBlob(r) && len(tars[2])-from > 20_000 {
						w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(tars[2])-1, len(tars[2])))
						w.Header().Set("Content-Length", fmt.Sprint(len(tars[2])-from))
						if from > 0 {
							w.WriteHeader(http.StatusPartialContent)
						}
						_, _ = w.Write(tars[2][from : from+20_000])
						panic(http.ErrAbortHandler)
					}
					return false
				}
			}},
		{name: "restart, without ranges", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) {
					return false
				}
				if n.Add(1) == 1 {
					cut(w, tars[2], 100_000)
				}
				_, _ = w.Write(tars[2])
				return true
			}
		}},
		{name: "truncated for ever", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) && r.Header.Get("Range") == "" {
					cut(w, tars[2], 5000)
				} else if isBlob(r) {
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, text: "given up at byte 5000 of"},
		{name: "truncated without a length", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) && r.Header.Get("Range") == "" {
					w.(http.Flusher).Flush() // chunked from here on
					_, _ = w.Write(tars[2][:7000])
					return true
				}
				return false
			}
		}},
		{name: "another content", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					_, _ = w.Write(bytes.Repeat([]byte("x"), len(tars[2])))
				}
				return isBlob(r)
			}
		}, want: image.ErrCorrupt, text: "its digest is"},
		{name: "longer than announced", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					_, _ = w.Write(append(bytes.Clone(tars[2]), "more"...))
				}
				return isBlob(r)
			}
		}, want: image.ErrCorrupt, text: "announced"},
		{name: "endless", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				for isBlob(r) {
					if _, err := w.Write(make([]byte, 1<<16)); err != nil {
						return true
					}
				}
				return false
			}
		}, want: image.ErrCorrupt, text: "it is longer than"},
		{name: "range that begins later", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) {
					return false
				}
				if n.Add(1) == 1 {
					cut(w, tars[2], 5000)
				}
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 300000-%d/%d", len(tars[2])-1, len(tars[2])))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(tars[2][300_000:])
				return true
			}
		}, want: image.ErrCorrupt, text: "asked for byte"},
		{name: "stops sending, then goes on", o: func(o *image.Options) { o.Stall = 100 * time.Millisecond },
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				var n atomic.Int32
				return func(w http.ResponseWriter, r *http.Request) bool {
					if isBlob(r) && n.Add(1) == 1 {
						_, _ = w.Write(tars[2][:50_000])
						w.(http.Flusher).Flush()
						<-r.Context().Done()
						return true
					}
					return false
				}
			}},
		{name: "manifest stops, then comes", o: func(o *image.Options) { o.Stall = 100 * time.Millisecond },
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return once(isManifest, func(w http.ResponseWriter, r *http.Request) {
					_, _ = w.Write(blobs[d.Digest][:20])
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
			}},
		{name: "manifest is cut, then comes",
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return once(isManifest, func(w http.ResponseWriter, _ *http.Request) { cut(w, blobs[d.Digest], 20) })
			}},
		{name: "manifest is cut for ever", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isManifest(r) {
					cut(w, blobs[d.Digest], 20)
				}
				return false
			}
		}, want: io.ErrUnexpectedEOF, text: "manifest v1"},
		{name: "token stops, then comes", o: func(o *image.Options) { o.Stall = 100 * time.Millisecond },
			before: func(g *imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				stop := once(isToken, func(w http.ResponseWriter, r *http.Request) {
					_, _ = w.Write([]byte(`{"token":`))
					w.(http.Flusher).Flush()
					<-r.Context().Done()
				})
				return func(w http.ResponseWriter, r *http.Request) bool {
					switch {
					case stop(w, r):
					case isToken(r):
						_, _ = w.Write([]byte(`{"token":"t"}`))
					case r.Header.Get("Authorization") == "Bearer t":
						return false
					default:
						w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, g.Host()))
						w.WriteHeader(http.StatusUnauthorized)
					}
					return true
				}
			}},
		{name: "no answer, then one", o: func(o *image.Options) { o.Stall = 100 * time.Millisecond },
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return once(isBlob, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			}},
		{name: "too many requests, then served",
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				var mu sync.Mutex
				seen := map[string]bool{}
				return func(w http.ResponseWriter, r *http.Request) bool {
					mu.Lock()
					defer mu.Unlock()
					if seen[r.URL.Path] {
						return false
					}
					seen[r.URL.Path] = true
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				}
			}},
		{name: "asks to wait a second", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			var first time.Time
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				if first.IsZero() {
					first = time.Now()
				}
				// Coming back sooner than was asked for is answered in the same way, until no retry is left.
				if time.Since(first) < time.Second {
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(http.StatusTooManyRequests)
					return true
				}
				return false
			}
		}, o: func(o *image.Options) { o.Retries = 1 }},
		{name: "too many requests for ever", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					w.WriteHeader(http.StatusTooManyRequests)
				}
				return isBlob(r)
			}
		}, text: "too many requests; wait, or log in"},
		{name: "bad gateway, then served", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			var n atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				if n.Add(1)%2 == 1 {
					w.WriteHeader(http.StatusBadGateway)
					return true
				}
				return false
			}
		}},
		{name: "blob is not there", before: func(g *imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r) {
					http.NotFound(w, r)
				}
				return isBlob(r)
			}
		}, want: image.ErrNotFound, text: plain},
		{name: "huge manifest", before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				for strings.Contains(r.URL.Path, "/manifests/") {
					if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
						return true
					}
				}
				return false
			}
		}, want: image.ErrTooLarge, text: "more than"},
		{name: "manifest is another one than announced",
			before: func(g *imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.Contains(r.URL.Path, "/manifests/") {
						return false
					}
					w.Header().Set("Docker-Content-Digest", plain)
					_, _ = w.Write(blobs[d.Digest])
					return true
				}
			}, want: image.ErrCorrupt, text: "announced was " + plain},
		{name: "web page instead of a registry",
			before: func(*imagetest.Registry) func(http.ResponseWriter, *http.Request) bool {
				return func(w http.ResponseWriter, r *http.Request) bool {
					_, _ = w.Write([]byte("<html>please log in</html>"))
					return true
				}
			}, want: image.ErrInvalid, text: "manifest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaktest.Check(t)
			g := imagetest.NewRegistry(t, blobs)
			g.Tags["v1"] = d
			g.Before = tt.before(g)
			o := impatient()
			if tt.o != nil {
				tt.o(&o)
			}
			img, err := open(t, g.Host()+"/org/app:v1", o)
			var got [][]byte
			if err == nil {
				got, err = read(t.Context(), img)
			}
			if tt.text == "" {
				if err != nil {
					t.Fatalf("%v\nrequests: %q", err, g.Requests())
				}
				for i := range tars {
					if !bytes.Equal(got[i], tars[i]) {
						t.Errorf("layer %d differs", i)
					}
				}
			} else if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
			if tt.check != nil {
				tt.check(t, g)
			}
		})
	}
}

// TestRegistryCancel: whatever it waits for, the end of the context ends it, and nothing is left running.
func TestRegistryCancel(t *testing.T) {
	blobs, d, tars := good(t)
	for _, what := range []string{"no answer", "half a layer", "told to wait"} {
		t.Run(what, func(t *testing.T) {
			leaktest.Check(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := imagetest.NewRegistry(t, blobs)
			g.Tags["v1"] = d
			g.Before = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, imagetest.Digest(tars[2])) {
					return false
				}
				switch what {
				case "told to wait":
					w.Header().Set("Retry-After", "100")
					w.WriteHeader(http.StatusTooManyRequests)
					time.AfterFunc(10*time.Millisecond, cancel)
					return true
				case "half a layer":
					_, _ = w.Write(tars[2][:1000])
					w.(http.Flusher).Flush()
				}
				cancel()
				<-r.Context().Done()
				return true
			}
			s, err := image.ParseSource(g.Host() + "/org/app:v1")
			if err != nil {
				t.Fatal(err)
			}
			img, err := image.Open(ctx, s, impatient())
			if err != nil {
				t.Fatal(err)
			}
			_, err = read(ctx, img)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want %v", err, context.Canceled)
			}
			if err := img.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRegistryDown: nobody listens.
func TestRegistryDown(t *testing.T) {
	o := impatient()
	o.Retries = 2
	if _, err := open(t, "127.0.0.1:1/org/app:v1", o); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("error %v, want one that names the registry", err)
	}
}
