package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
)

// nameFlags returns the flags for name resolution in a container and for the groups of its program.
func nameFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "add-host", Usage: "`NAME:ADDRESS`: a line more of /etc/hosts (repeat)"},
		&cli.StringSliceFlag{Name: "dns", Usage: "`ADDRESS` of a name server, instead of the machine's (repeat)"},
		&cli.StringSliceFlag{Name: "dns-search",
			Usage: "`DOMAIN` to look for names in, instead of the machine's; . for none (repeat)"},
		&cli.StringSliceFlag{Name: "dns-option", Aliases: []string{"dns-opt"},
			Usage: "`OPTION` of the resolver, instead of the machine's (repeat)"},
		&cli.StringSliceFlag{Name: "group-add", Usage: "`NUMBER` of a group more that the program is a member of (repeat)"},
		&cli.StringSliceFlag{Name: "device",
			Usage: "`PATH[:TARGET][:rwm]`: a device of this system, with --isolation=process (repeat)"},
	}
}

// nameOptions reads the flags of nameFlags.
func nameOptions(cmd *cli.Command, o *strata.SpecOptions) error {
	for _, value := range cmd.StringSlice("add-host") {
		at := strings.IndexAny(value, ":=")
		if at < 1 {
			return usage(cmd, "--add-host %q: give NAME:ADDRESS, such as db:10.0.0.2", value)
		}
		name, address := value[:at], strings.Trim(value[at+1:], "[]")
		if address == "host-gateway" {
			return usage(cmd, "--add-host %q: host-gateway is not supported; give an address", value)
		}
		o.Hosts = append(o.Hosts, strata.SpecHost{Address: address, Name: name})
	}
	o.Nameservers, o.Search = cmd.StringSlice("dns"), cmd.StringSlice("dns-search")
	o.ResolverOptions = cmd.StringSlice("dns-option")
	for _, value := range cmd.StringSlice("group-add") {
		number, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return usage(cmd, "--group-add %q: give the number of a group", value)
		}
		o.Groups = append(o.Groups, uint32(number))
	}
	for _, value := range cmd.StringSlice("device") {
		d, err := parseDevice(value)
		if err != nil {
			return usage(cmd, "--device %q: %w", value, err)
		}
		o.Devices = append(o.Devices, d)
	}
	return nil
}

// parseDevice parses PATH[:TARGET][:rwm].
func parseDevice(value string) (d strata.SpecDevice, err error) {
	parts := strings.Split(value, ":")
	if len(parts) > 1 && parts[len(parts)-1] != "" && strings.Trim(parts[len(parts)-1], "rwm") == "" {
		d.Access, parts = parts[len(parts)-1], parts[:len(parts)-1]
	}
	if len(parts) > 2 || parts[0] == "" {
		return d, errors.New("give PATH, PATH:TARGET or PATH:TARGET:rwm")
	}
	if err := statDevice(parts[0], &d); err != nil {
		return d, err
	}
	d.Path = parts[len(parts)-1]
	return d, nil
}

// maxEnvFile is the maximum size of an environment file in bytes.
const maxEnvFile = 1 << 20

// envFile reads an environment file: lines KEY=VALUE, or KEY to pass on its value; "#" begins a comment.
func (e *env) envFile(path string) (out []string, err error) {
	text, err := readSmall(path, maxEnvFile)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // byte order mark, which editors on Windows write
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxEnvFile)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if key, _, _ := strings.Cut(line, "="); key == "" || strings.ContainsAny(key, " \t\x00") {
			return nil, fmt.Errorf("--env-file %s: line %d: give KEY=VALUE, or KEY to pass on its value", path, n)
		}
		out = e.appendVariable(out, line)
	}
	return out, lines.Err()
}
