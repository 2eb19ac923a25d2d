package ocispec_test

import (
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/ocispec"
)

// TestEtcFiles: the lines that a container's files get.
func TestEtcFiles(t *testing.T) {
	e := ocispec.Etc{Hosts: []ocispec.Host{{Address: "10.0.0.2", Name: "db"}, {Address: "fd00::1", Name: "db"}}}
	hosts := e.HostsFile("web", "")
	for _, line := range []string{"127.0.0.1\tlocalhost", "10.0.0.2\tdb", "fd00::1\tdb", "127.0.0.1\tweb"} {
		if !strings.Contains(hosts, line+"\n") {
			t.Errorf("no line %q in\n%s", line, hosts)
		}
	}
	if got := e.HostsFile("web", "10.0.0.9"); !strings.Contains(got, "10.0.0.9\tweb\n") {
		t.Errorf("the address is not in\n%s", got)
	}
	const machine = "# made\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver rubbish\n" +
		"search old\nsearch a.example b\n" +
		"options edns0 trust-ad\nsortlist x\nnameserver\n"
	for name, tt := range map[string]struct {
		etc    ocispec.Etc
		shared bool
		want   string
	}{
		"of the machine": {ocispec.Etc{}, true,
			"search a.example b\nnameserver 127.0.0.53\nnameserver 10.0.0.1\noptions edns0 trust-ad\n"},
		"a network of its own": {ocispec.Etc{}, false,
			"search a.example b\nnameserver 10.0.0.1\noptions edns0 trust-ad\n"},
		"its own": {ocispec.Etc{Nameservers: []string{"127.0.0.2", "fd00::53"}, Search: []string{"."},
			Options: []string{"ndots:2"}}, false, "nameserver 127.0.0.2\nnameserver fd00::53\noptions ndots:2\n"},
	} {
		if got := tt.etc.ResolverFile([]byte(machine), tt.shared); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, tt.want)
		}
	}
}

// TestEtcAnnotation: what is written is read again, and nothing else.
func TestEtcAnnotation(t *testing.T) {
	if e, err := ocispec.EtcOf(map[string]string{"a": "b"}); e != nil || err != nil {
		t.Errorf("no annotation: %v, %v", e, err)
	}
	text, err := ocispec.Etc{Nameservers: []string{"10.0.0.1"}}.Annotation()
	if err != nil {
		t.Fatal(err)
	}
	e, err := ocispec.EtcOf(map[string]string{ocispec.EtcAnnotation: text})
	if err != nil || len(e.Nameservers) != 1 || e.Nameservers[0] != "10.0.0.1" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{"", "x", "{} {}", `{"host":[]}`, `{"hosts":[{"address":"1.2.3","name":"a"}]}`,
		`{"hosts":[{"address":"::1","name":"a\nb"}]}`, `{"search":["a b"]}`, `{"options":["a b"]}`,
		`{"search":["` + strings.Repeat("a", 70<<10) + `"]}`} {
		if _, err := ocispec.EtcOf(map[string]string{ocispec.EtcAnnotation: bad}); err == nil {
			t.Errorf("%.60q is taken", bad)
		}
	}
	hosts := make([]ocispec.Host, 3000)
	for i := range hosts {
		hosts[i] = ocispec.Host{Address: "10.0.0.1", Name: "name"}
	}
	if _, err := (ocispec.Etc{Hosts: hosts}).Annotation(); err == nil {
		t.Error("more than the annotation may have is taken")
	}
}
