// Package hcs manages utility VMs of a Windows host through its Host Compute Service.
//
// [CreateLCOW] and [CreateWCOW] create a VM for Linux or Windows containers, from options with the names that hcsshim
// uses; [Machine.Start] boots it. It is then a [vmm.Machine]. If the service owns the connection to the guest agent
// ("internal"), a Change is one ModifySettingRequest that includes the guest's half. If we own it ("external"), the
// host's half goes to the service and the guest's half over our connection, host first for Add, guest first for Remove.
//
// The package calls the service through [API], which has the functions of vmcompute.dll. [Native] is the real one on
// Windows; package hcstest has a service in memory.
//
// Calls to the service cannot be cancelled. When the caller's context ends, the caller gets an error at once and the
// call continues in the background. Its late result is handled: a system that was created is terminated, a change that
// took effect is recorded, and the next change at the same address waits for it.
//
// The package is large because both guest operating systems, both kinds of connection and the documents of a VM depend
// on one set of options. Independent parts are separate: the calls are in package internal/hcsapi, the order of the
// halves of a change in internal/applyengine.
package hcs
