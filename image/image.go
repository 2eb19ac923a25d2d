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

// Limits on untrusted images, far above the values of real ones.
const (
	maxManifest  = 4 << 20 // bytes of a manifest or an index
	maxConfig    = 8 << 20 // bytes of a configuration
	maxLayers    = 1000
	maxDepth     = 4   // nesting of indexes
	maxDocuments = 64  // indexes read to find one image
	maxArchive   = 1e5 // entries of an archive with an image
)

// DefaultMaxLayerBytes is the limit on the size of a layer's tar if Options.MaxLayerBytes is 0.
const DefaultMaxLayerBytes = 128 << 30

// Errors of this package match these with errors.Is.
var (
	// ErrNotFound: the source, an image in it or a blob of the image is missing.
	ErrNotFound = errors.New("not found")
	// ErrCorrupt: the content does not match its digest, size or format.
	ErrCorrupt = errors.New("the content does not match the image's description")
	// ErrInvalid: the image's manifest, index or configuration is invalid.
	ErrInvalid = errors.New("the image is invalid")
	// ErrUnsupported: this kind of image or layer is not supported.
	ErrUnsupported = errors.New("this image cannot be used")
	// ErrTooLarge: a limit is exceeded.
	ErrTooLarge = errors.New("the limit is exceeded")
	// ErrPlatform: there is no image for the requested platform.
	ErrPlatform = errors.New("no image for this platform")
	// ErrAmbiguous: several images match.
	ErrAmbiguous = errors.New("there are several images")
)

// Config is the part of the image's configuration that says how to run it.
type Config struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	User       string            `json:"user,omitempty"` // name or uid, optionally followed by ":" and group or gid
	Labels     map[string]string `json:"labels,omitempty"`
	// signal that asks the program to end: a name, with or without SIG, or a number
	StopSignal  string       `json:"stopSignal,omitempty"`
	Volumes     []string     `json:"volumes,omitempty"`     // paths whose content outlives a container, sorted
	Ports       []string     `json:"ports,omitempty"`       // exposed PORT[/PROTOCOL], sorted
	Shell       []string     `json:"shell,omitempty"`       // the shell that runs commands in shell form
	Healthcheck *Healthcheck `json:"healthcheck,omitempty"` // nil: none
}

// Healthcheck says how to check the health of the program. Strata shows it but does not run it.
type Healthcheck struct {
	Test        []string      `json:"test,omitempty"` // CMD and arguments, CMD-SHELL and a command, or NONE
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"startPeriod,omitempty"`
	Retries     int           `json:"retries,omitempty"`
}

// Image is an open image for one platform. Its methods may be called concurrently.
type Image struct {
	// Name is the image's name in the source, or one derived from the file name; it can be used as its name in a
	// store.
	Name string
	// Source is the source of the image.
	Source Source
	// Digest identifies the image: the digest of its manifest, or of its configuration if it has no manifest.
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
	ownName bool // Name is derived from the file name
}

// Close closes the source. Streams must be closed before.
func (i *Image) Close() error { return i.closer.Close() }

// CheckLinux returns an error with the reason if the layers cannot be used as a Linux root.
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

// Layer is one layer of an image in its source: its description, and how to read it. To import it, it is passed on as
// a store.Layer; the store's record is a store.ImageLayer, and a mount uses a layers.Layer.
type Layer struct {
	MediaType string
	Digest    string // digest of the blob; empty if unknown
	DiffID    string // digest of the uncompressed tar
	Size      int64  // size of the blob in bytes; -1 if unknown

	refusal error // reason why it cannot be opened, or nil
	raw     func(context.Context) (io.ReadCloser, error)
	limit   int64
}

// Open returns the layer's uncompressed tar. The stream returns io.EOF only after digest, size and diffID have been
// verified. progress, if not nil, is called with the number of bytes of the blob read so far, never concurrently. The
// stream reads ahead in goroutines; the caller must close it.
func (l Layer) Open(ctx context.Context, progress func(int64)) (io.ReadCloser, error) {
	if l.refusal != nil {
		return nil, l.refusal
	}
	return newStream(ctx, l, progress)
}

// Options are the options of Open.
type Options struct {
	// Platform to choose if there are several; empty: linux on this machine's architecture. If set, an image for
	// another platform is an error.
	Platform Platform
	// MaxLayerBytes bounds the size of each layer's tar; 0: DefaultMaxLayerBytes.
	MaxLayerBytes int64
	// AnyRoot accepts a tar without any of the usual folders of a root file system as one. A source of kind RootFS is
	// always accepted.
	AnyRoot bool
	// TempDir is the folder for decompressed archives while they are open; empty: the system's temporary directory.
	TempDir string
	// Keychain returns credentials; nil: DefaultKeychain, those of docker and podman.
	Keychain Keychain
	// PlainHTTP allows plain HTTP for any registry. It is always allowed for loopback addresses.
	PlainHTTP bool
	// Transport sends requests to registries; nil: one like http.DefaultTransport.
	Transport http.RoundTripper
	// Retries is how often a request is retried after a transient failure; 0: 5, negative: never. Progress of a
	// transfer resets the count.
	Retries int
	// Backoff is the delay before the first retry, doubled for each further one; 0: 200 ms. A delay that the registry
	// asks for (Retry-After) is honoured, up to two minutes.
	Backoff time.Duration
	// OnRetry, if not nil, is called before a retry. It may be called concurrently, and must not block.
	OnRetry func(Retry)
	// Stall is how long a registry may send nothing before the transfer is restarted; 0: 1 minute.
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

// Open finds the image and reads its documents, but not its layers. The caller must close the image.
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

// parseJSON decodes one document; trailing data is an error.
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
