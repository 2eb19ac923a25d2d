//go:build !windows

package main

import "context"

// shareLayer: virtual machines read layers with the rights of whoever started them.
func shareLayer() func(ctx context.Context, file string) error { return nil }
