// Package images tries containers as those who use them do: programs of Debian's packages, in an image that
// mmdebstrap makes once for all tests, by the command line, in real VMs and on this system itself. What goes wrong
// meanwhile are faults that happen: whatever serves a container is killed, at any moment.
//
// STRATA_TEST_ROOT names a tar that an earlier run made, which spares a minute; where there is no such file it is
// made there and stays.
package images
