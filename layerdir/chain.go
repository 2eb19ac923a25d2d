package layerdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stratavm/strata/internal/regfile"
)

// ChainName is the name of the file that lists the parents of a layer.
const ChainName = "layerchain.json"

const (
	maxChainBytes  = 4 << 20
	maxChainLayers = 10_000
)

// ErrChainOrder says that the given order of layers contradicts layerchain.json.
var ErrChainOrder = errors.New("the layers' order contradicts " + ChainName)

// ReadChain reads the parents of the layer in dir, immediate parent first. If there is no layerchain.json, the error
// matches fs.ErrNotExist; base layers may have an empty one or none.
func ReadChain(dir string) ([]string, error) {
	path := filepath.Join(dir, ChainName)
	b, err := regfile.Read(path, maxChainBytes)
	if err != nil {
		return nil, fmt.Errorf("read layer chain: %w", err)
	}
	chain, err := ParseChain(b)
	if err != nil {
		return nil, fmt.Errorf("read layer chain %s: %w", path, err)
	}
	return chain, nil
}

// ParseChain parses a layerchain.json: a JSON array of paths, immediate parent first.
func ParseChain(b []byte) ([]string, error) {
	var chain []string
	if err := json.Unmarshal(b, &chain); err != nil {
		return nil, fmt.Errorf("not a JSON array of paths: %w", err)
	}
	if len(chain) > maxChainLayers {
		return nil, fmt.Errorf("%d parents; at most %d are accepted", len(chain), maxChainLayers)
	}
	seen := make(map[string]bool, len(chain))
	for i, p := range chain {
		switch {
		case p == "":
			return nil, fmt.Errorf("parent %d is empty", i)
		case strings.ContainsRune(p, 0):
			return nil, fmt.Errorf("parent %d, %q, holds a NUL character", i, p)
		case seen[filepath.Clean(p)]:
			return nil, fmt.Errorf("parent %d, %q, is listed twice", i, p)
		}
		seen[filepath.Clean(p)] = true
	}
	return chain, nil
}

// WriteChain writes the layerchain.json of the layer in dir atomically, immediate parent first.
func WriteChain(dir string, parents []string) error {
	b, err := json.Marshal(append([]string{}, parents...)) // [] and never null
	if err != nil {
		return fmt.Errorf("write layer chain: %w", err)
	}
	if _, err := ParseChain(b); err != nil {
		return fmt.Errorf("write layer chain of %s: %w", dir, err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("write layer chain: %w", err)
	}
	if err := writeFile(abs, ChainName, append(b, '\n')); err != nil {
		return fmt.Errorf("write layer chain of %s: %w", dir, err)
	}
	return nil
}

// CheckChain compares the order of layers, top layer first, with the layerchain.json of each layer that has one. Paths
// are compared after cleaning and, if they exist, resolving links; a relative parent is relative to the folder of its
// layerchain.json. If the order differs, the error matches ErrChainOrder and shows both orders.
func CheckChain(layersTopFirst []string) error {
	// Every layer names all layers below it: n layers have n²/2 paths, but only n different ones.
	known := make(map[string]string, len(layersTopFirst))
	resolve := func(p string) string {
		real, ok := known[p]
		if !ok {
			real = canonical(p)
			known[p] = real
		}
		return real
	}
	given := make([]string, len(layersTopFirst))
	for i, l := range layersTopFirst {
		given[i] = resolve(l)
	}
	for i, l := range layersTopFirst {
		chain, err := ReadChain(l)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		want := make([]string, len(chain))
		for j, p := range chain {
			if !filepath.IsAbs(p) {
				p = filepath.Join(l, p)
			}
			want[j] = resolve(p)
		}
		if got := given[i+1:]; !slices.Equal(got, want) {
			return fmt.Errorf("%w: below %s the order given is [%s], its %s says [%s]: give the layers topmost first, base last",
				ErrChainOrder, l, strings.Join(layersTopFirst[i+1:], ", "), ChainName, strings.Join(chain, ", "))
		}
	}
	return nil
}

// canonical returns p as an absolute path, with links resolved if it exists.
func canonical(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		p = abs
	}
	if real, err := filepath.EvalSymlinks(p); err == nil {
		return real
	}
	return filepath.Clean(p)
}
