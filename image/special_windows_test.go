package image_test

import "testing"

func specialKinds(map[string]func(*testing.T, string)) {}
