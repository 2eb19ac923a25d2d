// Package hcsapi wraps the functions of vmcompute.dll for compute systems and processes: [API] is the interface,
// [Native] its implementation. Package hcs is the driver on top of API; package wclayer, with the functions for layers,
// shares HRESULT and [Call].
//
// The calls are written by hand. go-winio's mkwinsyscall would generate them from comments, but it supports one result
// per function, turns a missing export into a panic or its own error, and does not cover strings allocated by the
// service and callbacks, which are most of the code here.
package hcsapi
