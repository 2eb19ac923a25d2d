//go:build !unix

package main

import "os"

// notifyResize does nothing: Windows reports a new size only to readers of console events. The initial size stays.
func notifyResize(chan<- os.Signal) (stop func()) { return func() {} }

// notifyPassedOn: Windows has no such signals.
func notifyPassedOn(chan<- os.Signal) (stop func()) { return func() {} }
