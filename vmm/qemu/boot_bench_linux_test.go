package qemu

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stratavm/strata/internal/bootimage/bootimagetest"
	"github.com/stratavm/strata/internal/format/cpio"
	"github.com/stratavm/strata/vmm"
)

// bareReady is what the bare init says.
const bareReady = "bare init is up"

// bareInitrd is an initramfs with a shell and nothing else, whose script says that it runs.
func bareInitrd(b *testing.B) string {
	b.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.Skipf("%v; install it with: apt-get install busybox-static", err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "bare.cpio")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := cpio.NewWriter(f)
	script := "#!/busybox sh\necho " + bareReady + "\n/busybox sleep 1000\n"
	for _, file := range []struct {
		h    cpio.Header
		body string
	}{
		{cpio.Header{Name: "dev", Mode: cpio.TypeDir | 0o755}, ""},
		{cpio.Header{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1}, ""},
		{cpio.Header{Name: "busybox", Mode: cpio.TypeRegular | 0o755, Size: int64(len(program))}, string(program)},
		{cpio.Header{Name: "init", Mode: cpio.TypeRegular | 0o755, Size: int64(len(script))}, script},
	} {
		if err := w.WriteHeader(file.h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write([]byte(file.body)); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// bareBoot is the time from the start of the same QEMU until a bare init runs on the same kernel.
func bareBoot(b *testing.B, kernel, initrd string, words []string) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemuProgram, "-machine", "pc", "-cpu", "max", "-accel", accelOptions(AccelTCG), "-smp", "2",
		"-m", "256M", "-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd, "-append", strings.Join(append([]string{"console=ttyS0"}, words...), " "))
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	up := false
	for lines := bufio.NewScanner(out); !up && lines.Scan(); {
		up = strings.Contains(lines.Text(), bareReady)
	}
	took := time.Since(began)
	cancel()
	_ = cmd.Wait() // it was killed
	if !up {
		b.Fatal("the bare init does not run")
	}
	return took
}

// agentImage is what users boot who have strata-init beside strata, as make build makes it.
func agentImage(b *testing.B) vmm.BootImage {
	b.Helper()
	needQEMU(b)
	return bootimagetest.ImageOf(b, bootimagetest.Program(b, "cmd/strata-init"))
}

// BenchmarkBareBoot compares starting a machine, until its agent answers, with the bare kernel and a bare init in the
// same QEMU, in turns; and the same with one thing changed at a time.
func BenchmarkBareBoot(b *testing.B) {
	whole, img := image(b), agentImage(b)
	bare := bareInitrd(b)
	const rounds = 3
	ways := []struct {
		name   string
		change func(*Config)
	}{
		{"as it is", func(*Config) {}},
		{"the agent in the whole program", func(c *Config) { c.Kernel, c.Initrd = whole.Kernel, whole.Initrd }},
		{"one port for programs", func(c *Config) { c.ExecPorts = 1 }},
		{"firmware qboot", func(c *Config) {
			c.rewrite = func(args []string) []string { return append(slices.Clone(args), "-bios", "qboot.rom") }
		}},
	}
	for b.Loop() {
		ratios, times := map[string][]float64{}, map[string][]float64{}
		for range rounds {
			base := bareBoot(b, img.Kernel, bare, img.Cmdline).Seconds()
			times["bare"] = append(times["bare"], base)
			for _, way := range ways {
				c := Config{Dir: b.TempDir(), ID: "boot", Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: img.Cmdline, CPUs: 2,
					Accel: AccelTCG, Transport: TransportSerial}
				way.change(&c)
				began := time.Now()
				m, err := Start(b.Context(), c)
				if err != nil {
					b.Fatalf("%s: %v", way.name, err)
				}
				took := time.Since(began).Seconds()
				ratios[way.name], times[way.name] = append(ratios[way.name], took/base), append(times[way.name], took)
				end(b, m)
			}
		}
		for name, v := range ratios {
			slices.Sort(v)
			unit := "×bare:" + strings.ReplaceAll(name, " ", "-")
			b.ReportMetric(v[len(v)/2], unit)
			b.ReportMetric(v[len(v)/4], unit+"-q1")
			b.ReportMetric(v[len(v)*3/4], unit+"-q3")
		}
		slices.Sort(times["bare"])
		b.ReportMetric(times["bare"][rounds/2], "s/bare")
	}
}

// bootLines are what the kernel's log says at the beginning of each step in the guest, and at the end of the last.
var bootLines = []struct {
	step string
	line *regexp.Regexp
}{
	{"kernel", regexp.MustCompile(`\[ *([0-9.]+)\] Linux version`)},
	{"unpacking the initrd", regexp.MustCompile(`\[ *([0-9.]+)\] (?:Trying to unpack rootfs|Unpacking initramfs)`)},
	{"kernel, rest", regexp.MustCompile(`\[ *([0-9.]+)\] Freeing initrd memory`)},
	{"agent, modules", regexp.MustCompile(`\[ *([0-9.]+)\] Run /init as init process`)},
	{"", regexp.MustCompile(`\[ *([0-9.]+)\] strata: .*agent is up`)},
}

// BenchmarkBootSteps shows where the time of a boot goes, in ms from its beginning: the steps in the guest by the log of
// its kernel, and what comes before that log and after its last line as one, which the first bar is. The log is written
// to the console for that, which takes time of its own.
func BenchmarkBootSteps(b *testing.B) {
	img := agentImage(b)
	words := slices.DeleteFunc(slices.Clone(img.Cmdline), func(w string) bool { return w == "quiet" })
	c := Config{Dir: b.TempDir(), ID: "steps", Kernel: img.Kernel, Initrd: img.Initrd, Cmdline: words, CPUs: 2,
		Accel: AccelTCG, Transport: TransportSerial}
	began := time.Now()
	m, err := Start(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	whole := time.Since(began).Seconds() * 1000
	text, err := m.Console(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	end(b, m)
	at := stepTimes(b, text)
	outside := whole - at[len(at)-1]
	report := func(step string, from, to float64) {
		b.Run(step, func(b *testing.B) {
			for b.Loop() { // it was measured already
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(from, "ms-from")
			b.ReportMetric(to, "ms-to")
		})
	}
	report("QEMU, firmware, answer", 0, outside)
	for i, l := range bootLines[:len(bootLines)-1] {
		report(l.step, outside+at[i], outside+at[i+1])
	}
	if took := agentTook.FindString(text); took != "" {
		b.Log("the agent itself says: " + took)
	}
}

// agentTook is what the agent says of the time since it runs, of which its modules are a part.
var agentTook = regexp.MustCompile(`after=[0-9.µm]+s mounts=[0-9.µm]+s modules=[0-9.µm]+s`)

// stepTimes are the times of bootLines in ms, by the kernel's clock.
func stepTimes(b *testing.B, console string) (at []float64) {
	for _, l := range bootLines {
		found := l.line.FindStringSubmatch(console)
		if found == nil {
			b.Fatalf("the console does not say %q:\n%s", l.line, console)
		}
		s, err := strconv.ParseFloat(found[1], 64)
		if err != nil {
			b.Fatal(err)
		}
		at = append(at, s*1000)
	}
	return at
}
