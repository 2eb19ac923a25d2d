package layers

import (
	"encoding/json"
	"fmt"
)

// Image is what is kept with a container of the image that it was made of. It goes with the container.
type Image struct {
	Name   string `json:"name,omitempty"` // as the user called it
	Digest string `json:"digest,omitempty"`
	// Config is how programs of the image are run, in the words of whoever mounts it: see strata.KeepImage.
	Config json.RawMessage `json:"config,omitempty"`
}

// maxImage bounds what is kept of an image, in bytes: it is in each record of the container's claim.
const maxImage = 128 << 10

// check refuses what is too large to be kept.
func (i *Image) check() error {
	if i == nil {
		return nil
	}
	if n := len(i.Name) + len(i.Digest) + len(i.Config); n > maxImage {
		return fmt.Errorf("%w: the image says in %d bytes how its programs are run: %d can be kept", ErrInvalid, n, maxImage)
	}
	return nil
}
