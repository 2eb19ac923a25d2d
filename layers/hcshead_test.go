package layers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stratavm/strata/internal/hostpath"
	"github.com/stratavm/strata/layers"
	"github.com/stratavm/strata/vmm"
	"github.com/stratavm/strata/vmm/hcs/hcstest"
)

// headDeviation is what we do differently from the newer hcsshim, everywhere. Each rewrites calls of
// both sides to a common form.
type headDeviation struct {
	why     string
	rewrite func(calls []hcstest.Call) []hcstest.Call
}

// headDeviations are few: the newer hcsshim mends most of what the older one gets wrong.
var headDeviations = []headDeviation{
	{"VMs are driven through vmcompute.dll, whose calls have no operation objects; only what changes " +
		"something, and what the guest is asked, can be compared.", keepEffects},
	{"Guest mount paths count up and are not used again; they are compared by the order of their appearance.",
		renumberMounts},
	{"The scratch is named by its drive letter, not in volume form: links are resolved, mount points are not.", noVolumes},
	{"A read-only mount is asked for with ReadOnly alone; the guest takes that for the option ro.", noOptionRO},
	{"A removal repeats the configuration of the mount, so that the guest finds all that lies below it.", bareRemovals},
	{"Layer identities are asked for where they are needed and not once more at the end.", noIdentities},
}

// headSteps are the steps in which we differ for a reason of their own.
var headSteps = []struct {
	scenario, step, why string
	calls               []string // what we call, in brief
	fails               bool
}{
	{"lcow-shared-scratch", "mount b", whyGrant,
		[]string{"(guest) ModifySettings Add CombinedLayers"}, false},
	{"lcow-shared-scratch", "release b",
		"What the guest bound over the folder of b is on the scratch and goes before it. hcsshim's goes with the " +
			"container's state, and with it what the container wrote.",
		[]string{"(guest) ModifySettings Remove CombinedLayers", "(guest) ModifySettings Remove MappedDirectory",
			"(guest) ModifySettings Remove MappedVirtualDisk", "(guest) ModifySettings Remove SCSIDevice",
			"HcsModifyComputeSystem Remove Scsi/df6d0690-79e5-55b6-a5ec-c1e2f77f580a/Attachments/0",
			"(guest) ModifySettings Remove VPMemDevice", "HcsModifyComputeSystem Remove VirtualPMem/Devices/0"}, false},
	{"wcow-argon-no-scratch", "mount a",
		"A mount creates nothing: the platform refuses to activate a scratch that is not there, " +
			"and creating one is a call of its own.",
		[]string{`ActivateLayer C:\containers\a`, "NameToGuid app1", "NameToGuid base", `PrepareLayer C:\containers\a`,
			`GetLayerMountPath C:\containers\a`, `GetLayerMountPath C:\containers\a`}, false},
	{"wcow-xenon-3layers", "create wcow-uvm",
		"As in 2021 the VM's scratch is made ready before the service is asked for anything.",
		[]string{`GrantVmAccess C:\uvm\scratch\vm\sandbox.vhdx`, "HcsGetServiceProperties",
			"HcsCreateComputeSystem wcow-uvm"}, false},
}

func TestHCSConformanceHead(t *testing.T) {
	files, err := filepath.Glob("testdata/hcs/head/*/scenario.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata/hcs/head: %v", err)
	}
	for _, f := range files {
		s := loadScenario(t, filepath.Dir(f))
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			runHead(t, newReplay(t, s))
		})
	}
}

func runHead(t *testing.T, r *replay) {
	mounts := map[string]step{} // by container
	for _, st := range r.s.Steps {
		run := headStep(t, st, mounts)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		r.calls.Step(st.Step, st.Inject...)
		result, err := r.do(ctx, run)
		cancel()
		r.checkHead(st, err)
		if root, mounted := result.(string); mounted && err == nil {
			r.checkMounted(st, run, root)
		}
	}
	r.calls.Wait()
}

// headStep says in the words of the older API what a step of the newer one does.
func headStep(t *testing.T, st step, mounts map[string]step) step {
	switch st.Op {
	case "MountLCOWLayers", "MountWCOWLayers":
		if st.Inputs.GuestRoot == "" && st.Result != nil {
			var result struct{ Rootfs string }
			if err := json.Unmarshal(st.Result, &result); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(result.Rootfs, `\\?\Volume`) {
				st.Inputs.GuestRoot = result.Rootfs // chosen there, given here
			}
		}
		mounts[st.Inputs.ContainerID] = st
	case "Release":
		m := mounts[st.Inputs.ContainerID]
		st.Op = "ImageLayers.Release"
		st.Inputs.GuestRoot, st.Inputs.LayerFolders, st.Inputs.All = m.Inputs.GuestRoot, m.Inputs.LayerFolders, true
	case "CreateWCOW":
		st.Inputs.Options = json.RawMessage(`{"ID":"wcow-uvm","Owner":"golden","MemorySizeInMB":1024,"AllowOvercommit":true,
			"ProcessorCount":2,"ExternalGuestConnection":true,"KeepDirectMappedShares":true,"SCSIControllerGUIDs":true,
			"NoInheritHostTimezone":true,"LayerFolders":["C:\\layers\\win\\base","C:\\uvm\\scratch\\vm"]}`)
	case "CreateLCOW":
		var o map[string]any
		if err := json.Unmarshal(st.Inputs.Options, &o); err != nil {
			t.Fatal(err)
		}
		o["ExternalGuestConnection"], o["SCSIControllerGUIDs"] = true, true
		if o["VPMemDeviceCount"] == 0.0 {
			o["SCSIControllerCount"] = 4 // hcsshim adds them by itself
		}
		raw, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		st.Inputs.Options = raw
	}
	return st
}

func (r *replay) checkHead(st step, err error) {
	r.t.Helper()
	fails := st.Error != nil
	var instead []string
	for _, d := range headSteps {
		if d.scenario == r.s.Name && d.step == st.Step {
			instead, fails = d.calls, d.fails
		}
	}
	if (err != nil) != fails {
		r.t.Errorf("step %q: our error is %v, to fail is %t", st.Step, err, fails)
	}
	want, got := compared(r.s.trace, st.Step), compared(r.calls.Trace(), st.Step)
	for _, d := range headDeviations {
		want, got = d.rewrite(want), d.rewrite(got)
	}
	if instead != nil {
		if diff := cmp.Diff(instead, append(none, briefs(got)...)); diff != "" {
			r.t.Errorf("step %q: calls differ (-wanted +ours):\n%s", st.Step, diff)
		}
		return
	}
	if diff := cmp.Diff(briefs(want), briefs(got)); diff != "" {
		r.t.Errorf("step %q: calls differ (-hcsshim +ours):\n%s", st.Step, diff)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("step %q: documents differ (-hcsshim +ours):\n%s", st.Step, diff)
	}
}

// checkMounted compares what a mount gave: the root, and in a Linux VM the container's own directory on
// the scratch.
func (r *replay) checkMounted(st, run step, root string) {
	r.t.Helper()
	var want struct{ Rootfs, Scratch string }
	if err := json.Unmarshal(st.Result, &want); err != nil {
		r.t.Errorf("step %q: the recorded result: %v", st.Step, err)
		return
	}
	if root != want.Rootfs {
		r.t.Errorf("step %q: the root is %s, hcsshim's %s", st.Step, root, want.Rootfs)
	}
	vm := r.vmOf(run)
	if vm == nil || vm.OS() != vmm.Linux {
		return
	}
	m, err := layers.Open(vm, hostpath.Base(run.Inputs.GuestRoot))
	if err != nil {
		r.t.Errorf("step %q: %v", st.Step, err)
	} else if m.ScratchPath != want.Scratch {
		r.t.Errorf("step %q: the scratch is %s, hcsshim's %s", st.Step, m.ScratchPath, want.Scratch)
	}
}

func keepEffects(calls []hcstest.Call) (out []hcstest.Call) {
	kept := []string{"HcsModifyComputeSystem", "GrantVmAccess", "HcsGetServiceProperties", "HcsCreateComputeSystem",
		"ActivateLayer", "DeactivateLayer", "PrepareLayer", "UnprepareLayer", "GetLayerMountPath", "NameToGuid"}
	for _, c := range calls {
		if !slices.Contains(kept, c.Fn) && !strings.HasPrefix(c.Fn, "(guest)") {
			continue
		}
		args := map[string]any{}
		for k, v := range c.Args {
			if k != "operation" && k != "computeSystem" && k != "identity" && k != "securityDescriptor" {
				args[k] = v
			}
		}
		if c.Fn == "HcsCreateComputeSystem" || c.Fn == "HcsModifyComputeSystem" {
			c.HR = "" // here the call's own, there that of an operation or of a notification
		}
		c.Args = args
		out = append(out, c)
	}
	return out
}

var mountPath = regexp.MustCompile(`/run/mounts/(scsi/)?m[0-9]+`)

// inText rewrites calls as text.
func inText(calls []hcstest.Call, rewrite func(string) string) []hcstest.Call {
	raw, err := json.Marshal(calls)
	if err != nil {
		return nil
	}
	var out []hcstest.Call
	if json.Unmarshal([]byte(rewrite(string(raw))), &out) != nil {
		return nil
	}
	return out
}

func renumberMounts(calls []hcstest.Call) []hcstest.Call {
	seen := map[string]string{}
	return inText(calls, func(s string) string {
		return mountPath.ReplaceAllStringFunc(s, func(p string) string {
			if seen[p] == "" {
				seen[p] = fmt.Sprintf("/run/mounts/#%d", len(seen))
			}
			return seen[p]
		})
	})
}

func noVolumes(calls []hcstest.Call) []hcstest.Call {
	return inText(calls, func(s string) string {
		return strings.ReplaceAll(s, `\\\\?\\Volume{00000000-0000-0000-0000-000000000043}\\`, `C:\\`)
	})
}

func noOptionRO(calls []hcstest.Call) []hcstest.Call {
	return inText(calls, func(s string) string { return strings.ReplaceAll(s, `"Options":["ro"],`, "") })
}

func bareRemovals(calls []hcstest.Call) []hcstest.Call {
	for _, c := range calls {
		walk(c.Args, func(m map[string]any) {
			if settings, ok := m["Settings"].(map[string]any); ok && m["RequestType"] == "Remove" {
				delete(settings, "EnsureFilesystem")
				delete(settings, "Filesystem")
			}
		})
	}
	return calls
}

// noIdentities leaves out the questions for identities of a step without a VM, but for those before
// the layers are prepared for the first time.
func noIdentities(calls []hcstest.Call) (out []hcstest.Call) {
	prepared := false
	for _, c := range calls {
		prepared = prepared || c.Fn == "PrepareLayer"
		if c.Fn != "NameToGuid" || !prepared {
			out = append(out, c)
		}
	}
	return out
}
