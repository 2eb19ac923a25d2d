// Package options reads what containerd's configuration, or its client, says to this runtime: the runtime's options.
package options

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/stratavm/strata/internal/regfile"
)

// Bounds of numbers, for annotations too.
const (
	MaxMemoryMiB = 1 << 24
	MaxCPUs      = 1024
)

// maxText bounds the text of options in bytes.
const maxText = 64 << 10

// Options are the parsed runtime options. Fields that are not set mean the default.
type Options struct {
	Kernel    string `toml:"kernel"`         // the file of the guest's kernel
	Release   string `toml:"kernel_release"` // its release
	Modules   string `toml:"modules"`        // the folder with a folder of modules per release
	Init      string `toml:"init"`           // the program that carries the guest's agent
	Accel     string `toml:"accel"`          // auto, kvm or tcg
	MemoryMiB *int   `toml:"memory"`         // default size, and the minimum where limits size the VM
	CPUs      *int   `toml:"cpus"`           // the same
	Template  *bool  `toml:"template"`       // VMs are loaded from templates
	Debug     bool   `toml:"debug"`          // the shim's log says more
}

// names are the keys of the text, for those who misspell one.
const names = "accel, cpus, debug, init, kernel, kernel_release, memory, modules and template"

// Read reads options as containerd hands them over. What is not known is an error that names it. containerd itself
// gives a container of a sandbox options of runc, in which is where the shim of the sandbox answers.
func Read(a *anypb.Any) (Options, error) {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return Options{}, nil
	}
	if of := (&runcoptions.Options{}); a.MessageIs(of) && proto.Unmarshal(a.GetValue(), of) == nil {
		//lint:ignore SA1019 containerd sets them
		of.TaskApiAddress, of.TaskApiVersion = "", 0
		if proto.Size(of) == 0 {
			return Options{}, nil
		}
	}
	given := &runtimeoptions.Options{}
	if !a.MessageIs(given) {
		return Options{}, fmt.Errorf("runtime options of type %q are another runtime's: give those of "+
			"io.containerd.strata.v1 (%s), or remove the runtime's options from containerd's configuration, or its "+
			"client's command line: %w", a.GetTypeUrl(), names, errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(a.GetValue(), given); err != nil {
		return Options{}, fmt.Errorf("runtime options: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	o, err := read(given)
	if err != nil {
		return Options{}, fmt.Errorf("runtime options: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return o, nil
}

func read(given *runtimeoptions.Options) (Options, error) {
	path, text := given.GetConfigPath(), given.GetConfigBody()
	switch {
	case given.GetTypeUrl() != "":
		return Options{}, fmt.Errorf("TypeUrl %q is not known: remove it", given.GetTypeUrl())
	case path == "":
		return parse("containerd's configuration", text)
	case len(text) > 0:
		return Options{}, errors.New("there are both ConfigPath and ConfigBody: give one")
	case !filepath.IsAbs(path):
		return Options{}, fmt.Errorf("ConfigPath %q: give an absolute path", path)
	}
	text, err := regfile.Read(path, maxText)
	if err != nil {
		return Options{}, fmt.Errorf("ConfigPath: %w", err)
	}
	return parse(path, text)
}

// parse parses the text of options; from names its source in errors.
func parse(from string, text []byte) (Options, error) {
	if len(text) > maxText {
		return Options{}, fmt.Errorf("%s: the text is larger than %d bytes", from, maxText)
	}
	var o Options
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&o)
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(unknown.Errors) > 0 {
		return Options{}, fmt.Errorf("%s, %s is not known: there are %s", from, place(&unknown.Errors[0]), names)
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		return Options{}, fmt.Errorf("%s, %s: %w", from, place(wrong), err)
	}
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return Options{}, fmt.Errorf("%s: %w", from, err)
	}
	return o, nil
}

func place(e *toml.DecodeError) string {
	line, _ := e.Position()
	return strings.TrimSpace(fmt.Sprintf("line %d: %s", line, strings.Join(e.Key(), ".")))
}

func (o Options) check() error {
	for _, n := range []struct {
		name  string
		value *int
		most  int
	}{{"memory", o.MemoryMiB, MaxMemoryMiB}, {"cpus", o.CPUs, MaxCPUs}} {
		if n.value != nil && (*n.value < 1 || *n.value > n.most) {
			return fmt.Errorf("%s = %d: give a number from 1 to %d", n.name, *n.value, n.most)
		}
	}
	switch o.Accel {
	case "", "auto", "kvm", "tcg":
	default:
		return fmt.Errorf("accel = %q: use auto, kvm or tcg", o.Accel)
	}
	if o.Release != filepath.Base(o.Release) && o.Release != "" || slices.Contains([]string{".", "..", "/"}, o.Release) {
		return fmt.Errorf("kernel_release = %q: give the name of a folder of modules", o.Release)
	}
	for _, f := range []struct {
		name, path, kind string
		is               func(os.FileMode) bool
	}{{"kernel", o.Kernel, "file", os.FileMode.IsRegular}, {"init", o.Init, "file", os.FileMode.IsRegular},
		{"modules", o.Modules, "folder", os.FileMode.IsDir}} {
		if f.path == "" {
			continue
		}
		if !filepath.IsAbs(f.path) {
			return fmt.Errorf("%s = %q: give the absolute path of a %s", f.name, f.path, f.kind)
		}
		if st, err := os.Stat(f.path); err != nil {
			return fmt.Errorf("%s: %w: give the path of a %s that is there", f.name, err, f.kind)
		} else if !f.is(st.Mode()) {
			return fmt.Errorf("%s = %q is no %s", f.name, f.path, f.kind)
		}
	}
	return nil
}
