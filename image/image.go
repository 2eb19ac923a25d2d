package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/stratavm/strata/internal/span"
)

// Limits on what an image may say of itself. All are far above what real images have.
const (
	maxManifest  = 4 << 20 // bytes of a manifest or an index
	maxConfig    = 8 << 20 // bytes of a configuration
	maxLayers    = 1000
	maxDepth     = 4   // indexes in indexes
	maxDocuments = 64  // indexes read to find one image
	maxArchive   = 1e5 // entries of an archive that holds an image
)

// DefaultMaxLayerBytes is the limit on one layer's tar when Options.MaxLayerBytes is 0.
const DefaultMaxLayerBytes = 128 << 30

// Errors that errors of this package match.
var (
	// ErrNotFound: the source, an image in it or a blob of the image is missing.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: what was read is not what the image says it is.
	ErrCorrupt = errors.New("the content does not match the image's description")
	// ErrInvalid: the image's description makes no sense.
	ErrInvalid = errors.New("the image is invalid")
	// ErrUnsupported: a kind of image or layer that cannot be used here.
	ErrUnsupported = errors.New("this image cannot be used")
	// ErrTooLarge: a limit was hit.
	ErrTooLarge = errors.New("the limit is exceeded")
	// ErrPlatform: there is no image for the platform wanted.
	ErrPlatform = errors.New("no image for this platform")
	// ErrAmbiguous: the source has several images, and no name was given.
	ErrAmbiguous = errors.New("there are several images")
)

// Config is what the image says of the program to run in it.
type Config struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	User       string            `json:"user,omitempty"` // name or uid, perhaps with ":" and group or gid
	Labels     map[string]string `json:"labels,omitempty"`
	// what ends the program: a name, with or without SIG, or a number
	StopSignal  string       `json:"stopSignal,omitempty"`
	Volumes     []string     `json:"volumes,omitempty"`     // paths whose content outlives a container, sorted
	Ports       []string     `json:"ports,omitempty"`       // PORT[/PROTOCOL] that it listens on, sorted
	Shell       []string     `json:"shell,omitempty"`       // what commands in the form of a shell are given to
	Healthcheck *Healthcheck `json:"healthcheck,omitempty"` // nil: none
}

// Healthcheck says how to find out whether the program is well. Strata shows it and does not run it.
type Healthcheck struct {
	Test        []string      `json:"test,omitempty"` // CMD and arguments, CMD-SHELL and a command, or NONE
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"startPeriod,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}

// Image is one image for one platform, described. Its methods may be called concurrently.
type Image struct {
	// Name is what the source calls the image, or a name made of the file's; it may serve as name in a store.
	Name string
	// Source is what it was opened from.
	Source Source
	// Digest identifies the image: that of its manifest, or of its configuration where there is none.
	Digest   string
	Manifest []byte // empty for docker archives and bare root file systems
	Platform Platform
	Config   Config
	Created  time.Time
	// RawConfig is the configuration document.
	RawConfig []byte
	// Layers, base first.
	Layers []Layer

	closer  io.Closer
	ownName bool // Name is made of the file's
}

// Close releases the source. Streams must be closed before.
func (i *Image) Close() error { return i.closer.Close() }

// CheckLinux refuses images whose layers are no Linux root, with a reason.
func (i *Image) CheckLinux() error {
	switch os := i.Platform.OS; os {
	case "linux", "":
		return nil
	case "windows":
		return fmt.Errorf("image %s: %w: it is for Windows (%s): its layers need a Windows host, or give --platform "+
			"linux/%s if the image has that too",
			i.Name, ErrUnsupported, i.Platform, runtime.GOARCH)
	default:
		return fmt.Errorf("image %s: %w: it is for %s", i.Name, ErrUnsupported, i.Platform)
	}
}

// Layer is one layer of an image, where the image is: what it is made of, and how to read it. Imported it is described
// by store.Layer, kept as a store.ImageLayer, and mounted as a layers.Layer; the names of fields are the same.
type Layer struct {
	MediaType string
	Digest    string // of the blob; empty where the source does not say
	DiffID    string // of the tar
	Size      int64  // of the blob in bytes; -1 where the source does not say

	refusal error // why it cannot be opened
	raw     func(context.Context) (io.ReadCloser, error)
	limit   int64
}

// Open returns the tar of the layer. The stream returns io.EOF only when digest, size and diffID have been
// found right. progress, when set, is told the bytes of the blob read so far, from one goroutine at a
// time. The stream reads ahead in goroutines of its own, until it is closed.
func (l Layer) Open(ctx context.Context, progress func(int64)) (io.ReadCloser, error) {
	if l.refusal != nil {
		return nil, l.refusal
	}
	return newStream(ctx, l, progress)
}

// Options are the optional parts of Open.
type Options struct {
	// Platform is chosen where there are several; empty: linux on this machine's architecture. When it is
	// given, an image for another platform is refused.
	Platform Platform
	// MaxLayerBytes limits the tar of each layer; 0: DefaultMaxLayerBytes.
	MaxLayerBytes int64
	// AnyRoot accepts as a bare root file system also a tar that has none of the folders of one. A source of kind
	// RootFS is always accepted.
	AnyRoot bool
	// TempDir holds compressed archives, unpacked, while they are read; empty: the system's. On Windows they
	// stay in it after Close.
	TempDir string
	// Keychain finds credentials; nil: DefaultKeychain, those of docker and podman.
	Keychain Keychain
	// PlainHTTP allows plain HTTP for any registry. It is allowed on this machine anyhow.
	PlainHTTP bool
	// Transport is what registries are asked through; nil: a transport like net/http's.
	Transport http.RoundTripper
	// Retries is how often a request is repeated that fails for a reason that may pass; 0: 5, negative:
	// never. Bytes that arrive start the count anew.
	Retries int
	// Backoff is the pause before the first repetition, doubled each time; 0: 200 ms. A pause that the
	// registry asks for (Retry-After) is kept, up to two minutes.
	Backoff time.Duration
	// OnRetry, when set, is told before a registry is asked again. It may be called concurrently, and must not take
	// long.
	OnRetry func(Retry)
	// Stall is how long a registry may send nothing before the transfer is begun anew; 0: 1 minute.
	Stall time.Duration
}

func (o Options) withDefaults() Options {
	if o.MaxLayerBytes == 0 {
		o.MaxLayerBytes = DefaultMaxLayerBytes
	}
	if o.Keychain == nil {
		o.Keychain = DefaultKeychain
	}
	if o.Retries == 0 {
		o.Retries = 5
	}
	if o.Backoff == 0 {
		o.Backoff = 200 * time.Millisecond
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	return o
}

// Open finds the image and reads its documents; layers are not read yet. Close the image after use.
func Open(ctx context.Context, s Source, o Options) (*Image, error) {
	ctx, sp := span.Start(ctx, "strata.image.open", attribute.String("strata.image", s.String()))
	img, err := open(ctx, s, o.withDefaults())
	span.End(sp, err)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s, err)
	}
	return img, nil
}

func open(ctx context.Context, s Source, o Options) (*Image, error) {
	if s.Kind == Registry {
		return openRegistry(ctx, s, o)
	}
	return openFile(ctx, s, o)
}

// parseJSON reads one document and refuses what comes after it.
func parseJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if d.More() {
		return fmt.Errorf("%w: there is more than one JSON document", ErrInvalid)
	}
	return nil
}
