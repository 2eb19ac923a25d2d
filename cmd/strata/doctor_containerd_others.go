//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v3"
)

func containerdQuestions() []question {
	return []question{{"containerd", true, "use a Linux host", func(context.Context, *env, *cli.Command) (string, error) {
		return "", errors.New("the shim for containerd is for Linux hosts")
	}}}
}
