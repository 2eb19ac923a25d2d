// Package hcsapi is what the drivers and packages for Windows hosts call: HRESULTs, the exported functions of
// vmcompute.dll for compute systems and processes as an interface with handles ([API]), and [Native], which
// calls them. Package hcs is the driver on top of API; package wclayer, with the functions for layers,
// shares HRESULT and [Call].
//
// The calls are written by hand. go-winio's mkwinsyscall would generate them from comments, but it knows one
// result a function, takes a missing export for a panic or an error of its own, and would still leave the texts
// that the service allocates and the callbacks, which are most of the code here.
package hcsapi
