// Package soak works Strata hard for a while:
//
//   - TestParallel: twelve workers with mixed commands on one VM and one store. Nothing is "in use" that is not, and
//     each exit code is the program's.
//   - TestKilled: commands that are killed at random moments, in a VM and on this system itself. The next commands
//     mend what they leave.
//   - TestHostileGuest: a guest, the program in folder hostile, that is Strata's agent until it lies, floods or
//     stalls in the middle of a call. Each call ends with its context, this process stays small, and what is known of
//     the VM is right again as soon as the guest is honest.
//
// Each works for less than a minute, or for as long as STRATA_SOAK says (10m, say; make soak). What they choose at
// random is repeated with the STRATA_SOAK_SEED that they log; where processes race, that is not the same run.
package soak
