//go:build !unix

package main

import "os"

// notifyResize: Windows tells of a new size only to readers of console events, which we are not; the
// size at the start stays.
func notifyResize(chan<- os.Signal) (stop func()) { return func() {} }

// notifyPassedOn: Windows has no such signals.
func notifyPassedOn(chan<- os.Signal) (stop func()) { return func() {} }
