//go:build !linux

package leaktest

func startGuard() (release func() error, err error) { return func() error { return nil }, nil }
