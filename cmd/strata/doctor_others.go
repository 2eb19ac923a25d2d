//go:build !linux && !windows

package main

import (
	"context"
	"errors"
	"runtime"

	"github.com/urfave/cli/v3"
)

func hostQuestions() []question {
	return []question{{"operating system", true, "use Linux or Windows",
		func(context.Context, *env, *cli.Command) (string, error) {
			return "", errors.New("no utility VMs on " + runtime.GOOS)
		}}}
}

func freeSpace(string) (uint64, error) { return 0, errors.ErrUnsupported }
