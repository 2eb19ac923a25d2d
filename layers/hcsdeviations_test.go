package layers_test

// deviation is a step in which we knowingly do something else than hcsshim.
type deviation struct {
	scenario, step string
	why            string
	// calls are what we call instead, in brief; nil: the same calls as hcsshim.
	calls []string
	// replace are texts of hcsshim's documents and what ours have in their place.
	replace [][2]string
	outcome outcome
	// sentinel replaces the one that hcsshim's error matches.
	sentinel string
	// result replaces hcsshim's, as JSON.
	result string
	// unseen: the difference shows in the ledger only, or in a later step that has its own entry.
	unseen bool
}

// outcome is how a step ends with us.
type outcome int

const (
	sameOutcome outcome = iota
	succeeds            // where hcsshim failed
	fails               // where hcsshim succeeded
)

// What several entries have in common.
const (
	whySlot = "A slot whose attachment failed is free again, so that a later mount attaches the disk. " +
		"hcsshim's stays taken, and later mounts take it for an attached disk."
	whyCount = "A count goes down after the removal has succeeded, so that a failed removal can be made again. " +
		"hcsshim's wraps to 4294967295 and the disk or share stays for good."
	whyRetry = "An unmount that failed in part is finished by calling it again: what is gone already is not asked for, " +
		"and is no error."
	whyClean = "An unmount goes by what was mounted, not by what is to be found on the host now."
	whyCheck = "All files are looked at before anything is done."
	whyNone  = "Nothing of this container is in the VM, so nothing is asked of the guest; the error matches " +
		"ErrNotAttached all the same."
	whyGrant = "The VM may open the scratch since it was attached; access is granted once for each attachment."
	whySpell = "A path has one identity however it is spelled."
	whyOne   = "A container is one claim on its VM: it has to be unmounted in full before its id can be mounted again, " +
		"so that counts cannot grow unnoticed."
)

const (
	rmRoot  = "HcsModifyComputeSystem Remove CombinedLayers /run/gcs/c/a/rootfs"
	addRoot = "HcsModifyComputeSystem Add CombinedLayers /run/gcs/c/a/rootfs"
	grantA  = `GrantVmAccess C:\containers\a\sandbox.vhdx`
	grantB  = `GrantVmAccess C:\containers\b\sandbox.vhdx`
	rootB   = "HcsModifyComputeSystem Add CombinedLayers /run/gcs/c/b/rootfs"
	rootC   = "HcsModifyComputeSystem Add CombinedLayers /run/gcs/c/c/rootfs"
	rmShare = "HcsModifyComputeSystem Remove VirtualSmb/Shares s"
)

func addDisk(lun string) string {
	return "HcsModifyComputeSystem Add Scsi/0/Attachments/" + lun + " Add MappedVirtualDisk"
}

func removeDisk(lun string) string {
	return "HcsModifyComputeSystem Remove Scsi/0/Attachments/" + lun + " Remove MappedVirtualDisk"
}

func addLayer(slot string) string {
	return "HcsModifyComputeSystem Add VirtualPMem/Devices/" + slot + " Add VPMemDevice"
}

func removeLayer(slot string) string {
	return "HcsModifyComputeSystem Remove VirtualPMem/Devices/" + slot + " Remove VPMemDevice"
}

var none = []string{}

// deviations are all of them. Every defect that the scenarios mark has its entry; every other entry
// says why hcsshim's way is not ours.
var deviations = []deviation{
	// Marked defects: create documents.
	{scenario: "lcow-create-console", step: "create lcow-uvm",
		why:     "Init's own option for entropy stays outside of the shell command that a console adds.",
		replace: [][2]string{{`-- sh -c \"-e 1 /bin/vsockexec`, `-- -e 1 sh -c \"/bin/vsockexec`}}},
	{scenario: "lcow-create-resources", step: "create lcow-uvm",
		why:     "The kernel is told the number of processors that the VM has.",
		replace: [][2]string{{"nr_cpus=16", "nr_cpus=4"}}},
	{scenario: "lcow-create-vhdx", step: "create lcow-uvm",
		why:     "A root file system ending in .vhdx is a VHDX.",
		replace: [][2]string{{`"ImageFormat":"Vhd1"`, `"ImageFormat":"Vhdx"`}}},

	// Marked defects: bookkeeping.
	{scenario: "lcow-arguments", step: "mount with nothing", why: "An empty list is an error, not a fault of the program.",
		outcome: fails},
	{scenario: "lcow-no-scsi-controller", step: "mount a", why: whySlot +
		" No access is granted where there is no controller.",
		calls: []string{addLayer("0"), addLayer("1"), removeLayer("0"), removeLayer("1")}},
	{scenario: "lcow-no-scsi-controller", step: "unmount a", why: whyNone, calls: none, sentinel: "ErrNotAttached"},
	{scenario: "lcow-rollback-k4", step: "mount a again", why: whySlot,
		calls: []string{addLayer("0"), addLayer("1"), addLayer("2"), grantA, addDisk("0"), addRoot}},
	{scenario: "lcow-rollback-k4", step: "unmount a", why: whySlot,
		calls: []string{rmRoot, removeDisk("0"), removeLayer("0"), removeLayer("1"), removeLayer("2")}},
	{scenario: "lcow-rollback-shared", step: "mount b", why: whySlot, unseen: true},
	{scenario: "lcow-scsi-exhausted", step: "mount a", why: whySlot, unseen: true},
	{scenario: "lcow-scsi-rollback-k2", step: "mount a again", why: whySlot,
		calls:   []string{addDisk("0"), addDisk("1"), addDisk("2"), grantA, addDisk("3"), addRoot},
		replace: [][2]string{{"/run/mounts/m2", "/run/mounts/m4"}}},
	{scenario: "lcow-scsi-rollback-k2", step: "unmount a", why: whySlot,
		calls: []string{rmRoot, removeDisk("3"), removeDisk("0"), removeDisk("1"), removeDisk("2")}},
	{scenario: "lcow-external-gcs-guest-fails", step: "unmount a", why: whyCount, unseen: true},
	{scenario: "lcow-unmount-fail-many", step: "unmount a", why: whyCount, unseen: true},
	{scenario: "lcow-unmount-fail-k2", step: "unmount a again", why: whyCount + " " + whyRetry,
		calls: []string{removeDisk("0")}, outcome: succeeds},
	{scenario: "wcow-xenon-unmount-fail-many", step: "unmount a again",
		why:   whyCount + " The disk is not asked for again: element not found (0x490) says that it is gone.",
		calls: []string{`HcsModifyComputeSystem Remove CombinedLayers C:\c\a`, rmShare + "1", rmShare + "2"}},
	{scenario: "lcow-missing-scratch", step: "mount a", why: whyCheck, calls: none},
	{scenario: "lcow-missing-scratch", step: "unmount a", why: whyNone, calls: none},
	{scenario: "lcow-unmount-scratch-gone", step: "unmount a", why: whyClean,
		calls: []string{rmRoot, removeDisk("0"), removeLayer("0"), removeLayer("1")}, outcome: succeeds},
	{scenario: "wcow-xenon-unmount-layer-gone", step: "unmount a", why: whyClean, outcome: succeeds,
		calls: []string{`HcsModifyComputeSystem Remove CombinedLayers C:\c\a`, removeDisk("1"), rmShare + "1", rmShare +
			"2"}},
	{scenario: "lcow-path-spelling", step: "mount b, other case and trailing separators", why: whySpell,
		calls: []string{grantB, addDisk("1"), rootB}, replace: [][2]string{{"/run/layers/p2", "/run/layers/p1"}}},
	{scenario: "lcow-path-spelling", step: "mount c, slashes and dots, scratch of a in other case", why: whyGrant,
		calls: []string{rootC}},
	{scenario: "lcow-path-spelling", step: "unmount b", why: whySpell,
		calls: []string{"HcsModifyComputeSystem Remove CombinedLayers /run/gcs/c/b/rootfs", removeDisk("1")}},
	{scenario: "wcow-gethcslayers", step: "trailing separator", why: whySpell +
		" The identity is that of the folder's name.",
		calls: []string{"NameToGuid app2"},
		result: `[{"Id":"3d73f6aa-c814-5828-818e-1b30be808f88",` +
			`"Path":"\\\\?\\VMSMB\\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\\s1"}]`},

	// Not marked.
	{scenario: "lcow-arguments", step: "unmount never mounted", why: whyNone, calls: none},
	{scenario: "lcow-missing-layer", step: "mount a", why: whyCheck, calls: none},
	{scenario: "lcow-shared-scratch-link", step: "mount b", why: whyGrant, calls: []string{rootB}},
	{scenario: "lcow-duplicate-layer", step: "mount a", outcome: fails, calls: none,
		why: "A layer that is named twice is a mistake of the caller: the guest's overlay refuses to have it twice."},
	{scenario: "lcow-duplicate-layer", step: "unmount a", why: whyNone, outcome: fails, calls: none},
	{scenario: "lcow-unmount-fail-k1", step: "unmount a again", why: whyRetry, outcome: succeeds, unseen: true},
	{scenario: "lcow-unmount-fail-k3", step: "unmount a again", why: whyRetry,
		calls: []string{removeLayer("0")}, outcome: succeeds},
	{scenario: "lcow-vpmem-unmount-partial", step: "mount a again", why: whyOne, outcome: fails, calls: none},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a vpmem", why: whyOne,
		calls: []string{removeLayer("0"), removeLayer("1")}},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a vpmem 2", why: whyNone, outcome: fails, calls: none},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a vpmem 3", why: whyNone, calls: none},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a scsi 2", why: whyNone, outcome: fails, calls: none},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a scsi 3", why: whyNone, calls: none},
	{scenario: "lcow-vpmem-unmount-partial", step: "unmount a vsmb (nothing for linux)", why: whyNone, outcome: fails,
		calls: none},
	{scenario: "wcow-argon-fail-unprepare", step: "unmount a",
		why:   "Both halves of the unmount are attempted, whatever becomes of the first.",
		calls: []string{`UnprepareLayer C:\containers\a 0x80070005`, `DeactivateLayer C:\containers\a`}},
}
