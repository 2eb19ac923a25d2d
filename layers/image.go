package layers

import (
	"encoding/json"
	"fmt"
)

// Image describes the image of a container. It is stored with the container and removed with it.
type Image struct {
	Name   string `json:"name,omitempty"` // reference as the user gave it
	Digest string `json:"digest,omitempty"`
	// Config is how programs of the image are run, in a format of the caller's choice: see strata.KeepImage.
	Config json.RawMessage `json:"config,omitempty"`
}

// maxImage bounds the size of an Image, in bytes: it is part of each journal record of the container's claim.
const maxImage = 128 << 10

// check refuses an Image that is too large.
func (i *Image) check() error {
	if i == nil {
		return nil
	}
	if n := len(i.Name) + len(i.Digest) + len(i.Config); n > maxImage {
		return fmt.Errorf("%w: the image's configuration has %d bytes, at most %d fit", ErrInvalid, n, maxImage)
	}
	return nil
}
