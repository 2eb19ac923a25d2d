package strata

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"

	"github.com/stratavm/strata/image"
	"github.com/stratavm/strata/internal/ocispec"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
)

// KeepImage returns the image reference, digest and configuration in the form stored by layers.Request.Image.
func KeepImage(ref, digest string, c image.Config) (*layers.Image, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return &layers.Image{Name: ref, Digest: digest, Config: raw}, nil
}

// KeptConfig returns the image configuration stored by KeepImage; the zero Config if there is none.
func KeptConfig(kept *layers.Image) (c image.Config, err error) {
	if kept == nil || len(kept.Config) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(kept.Config, &c); err != nil {
		return c, fmt.Errorf("stored configuration of image %.64q: %w", kept.Name, err)
	}
	return c, nil
}

// ImageProcess returns s completed from the configuration stored by KeepImage: the environment (variables of s win),
// and the working directory and user if s has none. Args are left alone, as with docker exec.
func ImageProcess(kept *layers.Image, s vmm.ProcessSpec) (vmm.ProcessSpec, error) {
	c, err := KeptConfig(kept)
	if err != nil {
		return s, err
	}
	s.Env = ocispec.MergeEnv([]string{ocispec.DefaultPath}, imageEnv(c), s.Env)
	s.User = cmp.Or(s.User, c.User)
	if s.Dir == "" {
		s.Dir = path.Clean("/" + c.WorkingDir)
		s.MakeDir = true // images may name a working directory that does not exist
	}
	return s, nil
}
