package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stratavm/strata/internal/format/layertree/treetest"
	"github.com/stratavm/strata/test/leaktest"
)

// statusFields are the fields of a document by docs/status.md, in which each has its row, and why it is refused, or "".
func statusFields(t *testing.T) (names []string, refused map[string]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "status.md"))
	if err != nil {
		t.Fatal(err)
	}
	refused = map[string]string{}
	row := regexp.MustCompile("(?m)^\\| `([^`]*)` \\| (honoured|refused: )(.*) \\|$")
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
		if m[2] == "refused: " {
			refused[m[1]] = m[3]
		}
	}
	if len(names) < 100 || len(refused) < 30 {
		t.Fatalf("docs/status.md has %d fields, %d of them refused", len(names), len(refused))
	}
	return names, refused
}

// setField sets a field of a document.
func setField(doc map[string]any, path string, value any) {
	for {
		name, rest, more := strings.Cut(path, ".")
		name, list := strings.CutSuffix(name, "[]")
		switch {
		case !more && list:
			was, _ := doc[name].([]any)
			doc[name] = append(was, value)
			return
		case !more:
			doc[name] = value
			return
		}
		next, ok := doc[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			doc[name] = next
			if list {
				doc[name] = []any{next}
			}
		}
		doc, path = next, rest
	}
}

// fieldsOf are the fields that are set below a value, as the table writes them.
func fieldsOf(v any, path string) (out []string) {
	out = []string{path}
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			out = append(out, fieldsOf(e, strings.TrimPrefix(path+"."+name, "."))...)
		}
	case []any:
		for _, e := range v {
			out = append(out, fieldsOf(e, path+"[]")...)
		}
	}
	return out
}

func parseJSON(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// TestEachFieldIsSeen: there is a probe of each field that is honoured, and a value of each that is refused.
func TestEachFieldIsSeen(t *testing.T) {
	set := map[string]bool{}
	for _, p := range probes {
		for _, path := range fieldsOf(parseJSON(t, strings.ReplaceAll(p.value, "$DISK", `"major": 8`)), p.at) {
			set[strings.TrimSuffix(path, "[]")] = true
			set[path] = true
		}
	}
	names, refused := statusFields(t)
	for _, name := range names {
		if _, ok := refusedValues[name]; ok != (refused[name] != "") {
			t.Errorf("%s: the table of values that are refused has it: %v; docs/status.md says refused: %q", name, ok,
				refused[name])
		}
		if refused[name] == "" && !set[name] {
			t.Errorf("%s: docs/status.md calls it honoured, and no probe looks for it", name)
		}
	}
	for name := range refusedValues {
		if !slices.Contains(names, name) {
			t.Errorf("%s: docs/status.md has no such field", name)
		}
	}
}

// fieldBox is where documents are run.
type fieldBox struct {
	cliBox
	root, data string
	flags      []string // of strata run
	net        string   // the network namespace of the machine
	disk       string   // numbers of a disk, as JSON
	v1         bool     // control groups are of version 1
	vm, userns bool
}

func newFieldBox(t *testing.T, c cliBox, root string) fieldBox {
	t.Helper()
	busybox, err := os.ReadFile(need(t, "busybox", "busybox-static"))
	if err != nil {
		t.Fatal(err)
	}
	entries := []treetest.Entry{{Name: "bin/busybox", Mode: 0o755, Body: string(busybox)},
		{Name: "tmp/", Mode: 0o1777}, {Name: "etc/passwd", Body: "root:x:0:0::/:/bin/sh\napp:x:1001:7::/:/bin/sh\n"},
		{Name: "etc/group", Body: "root:x:0:\nteam:x:1002:\n"}, {Name: "opt/file", Body: "of the image"},
		{Name: "opt/secret", Body: "secret"}, {Name: "opt/dir/a"}, {Name: "opt/dir/b"}, {Name: "opt/fixed/"},
		{Name: "opt/loop", Type: '2', Link: "loop"}, {Name: "opt/copied/file", Body: "copied "},
		{Name: "probes", Body: probeScript()}}
	programs := "sh awk cat cut grep head hostname id ls mkdir readlink sed stat stty touch tr wc"
	for name := range strings.FieldsSeq(programs) {
		entries = append(entries, treetest.Entry{Name: "bin/" + name, Type: '2', Link: "busybox"})
	}
	if err := os.WriteFile(root, treetest.Tar(t, entries...), 0o644); err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return fieldBox{cliBox: c, root: root, data: data}
}

// functions are what probes use.
const functions = `
group() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2 2>/dev/null; }
tries() { for how in '<' '>'; do sh -c ": $how$1" 2>&1 | sed 's/.*: //'; done; }
throttle() { group io.max blkio/blkio.throttle.$2_device | sed "s/.*$1=\([0-9a-z]*\).*/\1/;s/.* //"; }
`

// probeScript prints what each probe sees, a line for each.
func probeScript() string {
	var b strings.Builder
	b.WriteString(functions)
	for i, p := range probes {
		fmt.Fprintf(&b, "echo \"%d:$( ( %s ) 2>&1 | tr '\\r\\n' '  ')\"\n", i, p.see)
	}
	return b.String()
}

// seen runs a document with the probes of a name and returns what all see.
func (f fieldBox) seen(name string) map[int]string {
	f.t.Helper()
	doc := f.document("/bin/sh", "/probes")
	if f.userns { // which has not all groups
		setField(doc, "linux.sysctl", map[string]any{})
	}
	setField(doc, "process.env[]", "NET="+f.net)
	for _, p := range probes {
		if p.in == name && !f.lacks(p) {
			setField(doc, p.at, f.value(p.value))
		}
	}
	return lines(f.runDocument(doc, name == "terminal"))
}

// document is one that sets nothing.
func (f fieldBox) document(args ...string) map[string]any {
	f.t.Helper()
	out, err := f.cmd(append([]string{"spec", f.root}, args...)...).Output()
	if err != nil {
		f.t.Fatalf("strata spec: %v", err)
	}
	doc, _ := parseJSON(f.t, string(out)).(map[string]any)
	return doc
}

// value is a value of the table.
func (f fieldBox) value(text string) any {
	return parseJSON(f.t, strings.NewReplacer("$DATA", f.data, "$DISK", f.disk).Replace(text))
}

// runDocument returns what the program of a document prints.
func (f fieldBox) runDocument(doc map[string]any, terminal bool) string {
	f.t.Helper()
	run := append(append([]string{"run"}, f.flags...), "--spec", f.file(doc))
	if !terminal {
		return f.run(append(run, f.root)...)
	}
	f.run(append(run, "-d", "-t", "--name", "terminal", f.root)...)
	f.run("wait", "terminal")
	out := f.run("logs", "terminal")
	f.run("rm", "terminal")
	return out
}

// file is one with a document.
func (f fieldBox) file(doc map[string]any) string {
	f.t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		f.t.Fatal(err)
	}
	path := filepath.Join(f.t.TempDir(), "config.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// lines are what each probe has seen, white space aside.
func lines(out string) map[int]string {
	got := map[int]string{}
	for line := range strings.Lines(out) {
		n, rest, _ := strings.Cut(line, ":")
		var i int
		if _, err := fmt.Sscan(n, &i); err == nil {
			got[i] = strings.Join(strings.Fields(rest), " ")
		}
	}
	return got
}

// lacks reports whether a field cannot be seen where documents are run.
func (f fieldBox) lacks(p probe) bool {
	return f.v1 && p.v1 == "-" || p.vm && !f.vm || p.root && f.userns
}

// check runs all documents, and one that sets nothing: each probe sees its field, and something else without it.
func (f fieldBox) check() {
	f.t.Helper()
	without := f.seen("")
	got := map[string]map[int]string{}
	for i, p := range probes {
		if f.lacks(p) {
			continue
		}
		if got[p.in] == nil {
			got[p.in] = f.seen(p.in)
		}
		want := p.want
		if f.v1 && p.v1 != "" {
			want = p.v1
		}
		if got[p.in][i] != want {
			f.t.Errorf("%s of %s: %q, want %q", p.at, p.value, got[p.in][i], want)
		}
		if !p.same && without[i] == want {
			f.t.Errorf("%s: %q is seen also without it", p.at, without[i])
		}
	}
}

// checkOptions mounts with all options, each over a place of its own.
func (f fieldBox) checkOptions() {
	f.t.Helper()
	doc := f.document("/bin/cat", "/proc/self/mountinfo")
	setField(doc, "linux.sysctl", map[string]any{})
	for i, p := range optionProbes {
		mount, _ := f.value(p.mount).(map[string]any)
		mount["destination"] = fmt.Sprintf("/opt/o%d", i)
		setField(doc, "mounts[]", mount)
	}
	out := f.runDocument(doc, false)
	for i, p := range optionProbes {
		_, line, ok := strings.Cut(out, fmt.Sprintf(" /opt/o%d ", i))
		line, _, _ = strings.Cut(line, "\n")
		got := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == ',' })
		for word := range strings.FieldsSeq(p.want) {
			word, not := strings.CutPrefix(word, "!")
			if !ok || slices.Contains(got, word) == not {
				f.t.Errorf("%s is mounted with %q, want %q", p.mount, line, p.want)
				break
			}
		}
	}
}

// TestFieldsOnThisSystem runs the documents on this system.
func TestFieldsOnThisSystem(t *testing.T) {
	c, root := processBox(t)
	f := newFieldBox(t, c, root)
	f.flags = []string{"--isolation=process"}
	var err error
	if f.net, err = os.Readlink("/proc/self/ns/net"); err != nil {
		t.Fatal(err)
	}
	f.v1 = !fileExists("/sys/fs/cgroup/cgroup.controllers")
	var major, minor int
	if _, err := fmt.Sscan(disk(t), &major, &minor); err != nil {
		t.Fatal(err)
	}
	f.disk = fmt.Sprintf(`"major": %d, "minor": %d`, major, minor)
	f.check()
	f.checkOptions()
	f.checkUnreachableMasks()
	f.checkRefused()
}

// TestFieldsInUserNamespace runs the documents as root of a user namespace.
func TestFieldsInUserNamespace(t *testing.T) {
	if !treetest.InUserNamespace(t, 65536) {
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	leaktest.Check(t)
	work := t.TempDir()
	c := cliBox{t: t, strata: filepath.Join(work, "strata"), state: filepath.Join(work, "state")}
	if err := os.Symlink(self, c.strata); err != nil { // by this name it is the command: see TestMain
		t.Fatal(err)
	}
	f := newFieldBox(t, c, filepath.Join(work, "root.tar"))
	f.flags, f.userns = []string{"--isolation=process"}, true
	f.check()
	f.checkOptions()
}

// TestFieldsInVM runs the documents in a VM.
func TestFieldsInVM(t *testing.T) {
	c, root := processBox(t)
	needVM(t, c.strata)
	t.Cleanup(func() { stopAll(t, c.state, c.strata) })
	f := newFieldBox(t, c, root)
	f.checkRefused() // before anything is started
	if out := f.run("vm", "ls"); strings.Contains(out, "running") {
		t.Errorf("for a document that is refused a VM is started: %s", out)
	}
	f.run("vm", "start", "--memory", "512M")
	f.flags, f.vm, f.net, f.disk = []string{"--vm", "default"}, true, "VM", `"major": 8, "minor": 0`
	f.check()
	f.checkOptions()
	f.checkUnreachableMasks()
	f.run("vm", "stop")
}

// checkRefused runs documents with each field that is refused: the error names the field and why, and nothing runs.
func (f fieldBox) checkRefused() {
	f.t.Helper()
	_, refused := statusFields(f.t)
	for name, value := range refusedValues {
		doc := f.document("/bin/sh", "-c", "echo it ran")
		setField(doc, name, parseJSON(f.t, value))
		out, err := f.cmd(append(append([]string{"run"}, f.flags...), "--spec", f.file(doc), f.root)...).CombinedOutput()
		want := strings.ReplaceAll(name, "[]", "[0]") + ": not supported: " + refused[name]
		if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "it ran") {
			f.t.Errorf("%s of %s: %v, %s, want %q", name, value, err, out, want)
		}
	}
}
