package ocispec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// EtcAnnotation is the annotation with the Etc of a container as JSON. Without it, the container has the files of its
// image.
const EtcAnnotation = "org.stratavm.etc"

// InitAnnotation is the annotation that is "true" if the container's first process is an init, which reaps orphans and
// forwards signals to the spec's process.
const InitAnnotation = "org.stratavm.init"

// InitPath is where the init program, catatonit, is mounted in the container: in /dev, which is a tmpfs.
const InitPath = "/dev/.strata-init"

// Etc is the additional content of a container's /etc/hosts and /etc/resolv.conf. A container with an Etc also gets
// /etc/hostname.
type Etc struct {
	Hosts       []Host   `json:"hosts,omitempty"`
	Nameservers []string `json:"nameservers,omitempty"` // addresses; none: those of the machine
	Search      []string `json:"search,omitempty"`      // domains; none: those of the machine
	Options     []string `json:"options,omitempty"`     // of the resolver; none: those of the machine
}

// Host is a line of /etc/hosts.
type Host struct {
	Address string `json:"address"`
	Name    string `json:"name"`
}

// maxEtc is the maximum size of the annotation in bytes.
const maxEtc = 64 << 10

var (
	hostName       = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?$`)
	resolverOption = regexp.MustCompile(`^[a-z0-9-]+(:[0-9]+)?$`)
)

// Check returns an error unless all values are valid in the files.
func (e Etc) Check() error {
	for _, h := range e.Hosts {
		if _, err := netip.ParseAddr(h.Address); err != nil {
			return fmt.Errorf("address %.60q of host %.60q: give one of IPv4 or IPv6", h.Address, h.Name)
		}
		if !hostName.MatchString(h.Name) {
			return fmt.Errorf("%.60q cannot be the name of a host", h.Name)
		}
	}
	for _, a := range e.Nameservers {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("name server %.60q: give an address of IPv4 or IPv6", a)
		}
	}
	for _, s := range e.Search {
		if s != "." && !hostName.MatchString(s) {
			return fmt.Errorf("%.60q cannot be a domain to search", s)
		}
	}
	for _, o := range e.Options {
		if !resolverOption.MatchString(o) {
			return fmt.Errorf("%.60q is no option of the resolver", o)
		}
	}
	return nil
}

// Annotation returns the value of EtcAnnotation.
func (e Etc) Annotation() (string, error) {
	if err := e.Check(); err != nil {
		return "", err
	}
	text, err := json.Marshal(e)
	if len(text) > maxEtc {
		return "", fmt.Errorf("the lines of /etc/hosts and /etc/resolv.conf have %d bytes, more than %d", len(text), maxEtc)
	}
	return string(text), err
}

// EtcOf returns the Etc of annotations, or nil if there is none.
func EtcOf(annotations map[string]string) (*Etc, error) {
	text, ok := annotations[EtcAnnotation]
	if !ok {
		return nil, nil
	}
	if len(text) > maxEtc {
		return nil, fmt.Errorf("annotation %s: more than %d bytes", EtcAnnotation, maxEtc)
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	e := new(Etc)
	err := d.Decode(e)
	if err == nil && d.More() {
		err = errors.New("more than one document")
	}
	if err == nil {
		err = e.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", EtcAnnotation, err)
	}
	return e, nil
}

// HostsFile returns /etc/hosts for a container called hostname, with its address or, if empty, a loopback address.
func (e Etc) HostsFile(hostname, address string) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, h := range e.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.Address, h.Name)
	}
	if address == "" {
		address = "127.0.0.1"
	}
	if hostname != "" {
		fmt.Fprintf(&b, "%s\t%s\n", address, hostname)
	}
	return b.String()
}

// Resolver is the content of a resolv.conf.
type Resolver struct {
	Servers []netip.Addr
	Search  []string // domains
	Options []string
}

// ParseResolver parses a resolv.conf. Invalid lines are ignored.
func ParseResolver(text []byte) (r Resolver) {
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				r.Servers = append(r.Servers, addr)
			}
		case "search", "domain": // the last one counts
			r.Search = fields[1:]
		case "options":
			r.Options = append(r.Options, fields[1:]...)
		}
	}
	return r
}

// String returns the file's content.
func (r Resolver) String() string {
	var b strings.Builder
	if len(r.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.Search, " "))
	}
	for _, s := range r.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.Options, " "))
	}
	return b.String()
}

// ResolverFile returns /etc/resolv.conf for a container; machine is the system's file. Unless the container shares the
// system's network, the system's name servers at loopback addresses are left out.
func (e Etc) ResolverFile(machine []byte, shared bool) string {
	r := ParseResolver(machine)
	if !shared {
		r.Servers = slices.DeleteFunc(r.Servers, netip.Addr.IsLoopback)
	}
	if len(e.Nameservers) > 0 {
		r.Servers = nil
	}
	for _, s := range e.Nameservers {
		if addr, err := netip.ParseAddr(s); err == nil { // see Check
			r.Servers = append(r.Servers, addr)
		}
	}
	if len(e.Search) > 0 {
		r.Search = slices.DeleteFunc(slices.Clone(e.Search), func(d string) bool { return d == "." })
	}
	if len(e.Options) > 0 {
		r.Options = e.Options
	}
	return r.String()
}
