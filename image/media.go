package image

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layerTypes are the media types of layers that can be read. How a blob is compressed its first bytes
// tell: tools are known to write one thing and say another, and the digests decide anyhow.
var layerTypes = map[types.MediaType]bool{
	types.OCILayer:                true,
	types.OCILayerZStd:            true,
	types.OCIUncompressedLayer:    true,
	types.DockerLayer:             true,
	types.DockerUncompressedLayer: true,
	// Written by buildkit and older containerd, though never registered.
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
	// What may not be distributed may be here all the same.
	types.OCIRestrictedLayer:             true,
	types.OCIUncompressedRestrictedLayer: true,
	restrictedZstd:                       true,
	types.DockerForeignLayer:             true,
}

const restrictedZstd types.MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

// isForeign reports whether registries need not hold layers of this type.
func isForeign(t types.MediaType) bool { return !t.IsDistributable() || t == restrictedZstd }

// missingForeign says why such a layer is missing.
func missingForeign(t types.MediaType, digest string, err error) error {
	return fmt.Errorf("layer %s: %w: %s is a foreign layer, whose licence may forbid to distribute it, so that "+
		"registries and archives "+
		"need not hold it", digest, err, t)
}

// refuseLayer says why a layer of this type cannot be read, or nil.
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

// configTypes are the media types of image configurations.
func refuseConfig(t types.MediaType) error {
	if t.IsConfig() || t == "" || t == "application/octet-stream" { // the last from old docker registries
		return nil
	}
	return fmt.Errorf("%w: it holds %q and no container image (is it a chart, a signature or another artifact?)",
		ErrUnsupported, t)
}
