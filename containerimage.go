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

// KeepImage is what layers.Request.Image keeps of an image with a container of it: ref is what the user calls it.
func KeepImage(ref, digest string, c image.Config) (*layers.Image, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return &layers.Image{Name: ref, Digest: digest, Config: raw}, nil
}

// KeptConfig is how programs of an image are run that KeepImage kept.
func KeptConfig(kept *layers.Image) (c image.Config, err error) {
	if kept == nil || len(kept.Config) == 0 {
		return c, nil
	}
	if err := json.Unmarshal(kept.Config, &c); err != nil {
		return c, fmt.Errorf("what is kept of image %.64q: %w", kept.Name, err)
	}
	return c, nil
}

// ImageProcess returns s with what an image that KeepImage kept says where s says nothing: the environment, of which
// that of s wins, the working directory and the user. The command is that of s, as with docker's exec.
func ImageProcess(kept *layers.Image, s vmm.ProcessSpec) (vmm.ProcessSpec, error) {
	c, err := KeptConfig(kept)
	if err != nil {
		return s, err
	}
	s.Env = ocispec.MergeEnv([]string{ocispec.DefaultPath}, imageEnv(c), s.Env)
	s.User = cmp.Or(s.User, c.User)
	if s.Dir == "" {
		s.Dir = path.Clean("/" + c.WorkingDir)
		s.MakeDir = true // images name working directories that they do not have
	}
	return s, nil
}
