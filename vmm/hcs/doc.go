// Package hcs drives utility VMs of a Windows host through its Host Compute Service.
//
// [CreateLCOW] and [CreateWCOW] make a VM for Linux or Windows containers from options that carry
// the names hcsshim gave them; [Machine.Start] boots it; from then on it is a [vmm.Machine]. A
// Change becomes one ModifySettingRequest: where the service owns the connection to the guest agent
// ("internal") the guest's half travels inside it; where we own it ("external") the host's half goes
// to the service and the guest's half over our own bridge, host first for Add, guest first for Remove.
//
// The package talks to the service through [API], which has the shape of vmcompute.dll. [Native] is
// the real one on Windows; package hcstest has a service in memory.
//
// Calls into the service cannot be cancelled. Each runs by itself; when the caller's context ends,
// the caller gets its answer at once and what comes late is tidied up: a system that was still
// created is terminated, a change that still took effect is noted, and the next change at the same
// address waits for it.
//
// The package is large because both operating systems of guests, both connections to them and the documents of a
// VM are decided together, from one set of options. What could stand alone does: the calls are package
// internal/hcsapi, the order of the halves of a change is internal/applyengine.
package hcs
