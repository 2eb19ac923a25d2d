package image

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layerTypes are the supported media types of layers. The compression is detected from the first bytes of the blob:
// the media type may be wrong, and the digests are verified anyway.
var layerTypes = map[types.MediaType]bool{
	types.OCILayer:                true,
	types.OCILayerZStd:            true,
	types.OCIUncompressedLayer:    true,
	types.DockerLayer:             true,
	types.DockerUncompressedLayer: true,
	// Used by buildkit and older containerd, but never registered.
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
	// Non-distributable layers may be present nevertheless.
	types.OCIRestrictedLayer:             true,
	types.OCIUncompressedRestrictedLayer: true,
	restrictedZstd:                       true,
	types.DockerForeignLayer:             true,
}

const restrictedZstd types.MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

// isForeign reports whether registries may lack layers of this type.
func isForeign(t types.MediaType) bool { return !t.IsDistributable() || t == restrictedZstd }

// missingForeign wraps the error about a missing foreign layer.
func missingForeign(t types.MediaType, digest string, err error) error {
	return fmt.Errorf("layer %s: %w: %s is a foreign layer, whose licence may forbid to distribute it, so that "+
		"registries and archives "+
		"need not hold it", digest, err, t)
}

// refuseLayer returns an error if layers of this type cannot be read.
func refuseLayer(t types.MediaType, digest string) error {
	switch {
	case layerTypes[t]:
		return nil
	case strings.HasSuffix(string(t), "+encrypted"):
		return fmt.Errorf("layer %s: %w: it is encrypted; decrypt the image first (skopeo copy --decryption-key)", digest,
			ErrUnsupported)
	}
	return fmt.Errorf("layer %s: %w: unknown media type %q", digest, ErrUnsupported, t)
}

// refuseConfig returns an error if t is not the media type of an image configuration.
func refuseConfig(t types.MediaType) error {
	if t.IsConfig() || t == "" || t == "application/octet-stream" { // the last from old docker registries
		return nil
	}
	return fmt.Errorf("%w: it holds %q and no container image (is it a chart, a signature or another artifact?)",
		ErrUnsupported, t)
}
