package main

import (
	"context"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v3"
)

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGTERM": 15, "sigterm": 15, "15": 15, "INT": 2, "SIGQUIT": 3, "SIGWINCH": 28, "USR1": 10, "9": 9,
		"SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMIN+3": 37, "RTMIN+30": 64, "SIGRTMAX": 64, "RTMAX-1": 63, "RTMAX-30": 34,
		"1": 1, "64": 64,
		// Refused:
		"": 0, "0": 0, "65": 0, "-1": 0, "+15": 0, "SIG": 0, "SIG15": 0, "SIGNOPE": 0, "TERM ": 0, "TERM\n": 0,
		"SIGSIGTERM": 0,
		"RTMIN-1":    0, "RTMIN+31": 0, "RTMAX+1": 0, "RTMAX-31": 0, "RTMIN+": 0, "RTMIN+-1": 0, "RTMIN++1": 0, "TERM+1": 0,
		"99999999999999999999": 0, "0x9": 0,
	} {
		got, err := parseSignal(in)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q is signal %d, %v; want %d", in, got, err, want)
		}
	}
}

// TestStopSignal: the command line decides, then the image; what is no signal is refused.
func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		name  string
		args  []string
		image string
		want  syscall.Signal
		err   string
	}{
		{name: "neither says", want: 15},
		{name: "image", image: "SIGRTMIN+3", want: 37},
		{name: "command line", args: []string{"--stop-signal", "int"}, image: "SIGQUIT", want: 2},
		{name: "command line against a bad image", args: []string{"--stop-signal=9"}, image: "x", want: 9},
		{name: "bad image", image: "SIGNOPE", err: `the image's stop signal: there is no signal "SIGNOPE"`},
		{name: "bad command line", args: []string{"--stop-signal", "0"}, err: `--stop-signal: there is no signal "0"`},
		{name: "Windows guest", args: []string{"--guest", "windows"}, image: "SIGNOPE", want: 15},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := &cli.Command{Name: "x", Flags: []cli.Flag{stopSignalFlag(), &cli.StringFlag{Name: "guest"}},
				Action: func(_ context.Context, cmd *cli.Command) error {
					sig, err := stopSignal(cmd, tt.image)
					if err == nil && sig != tt.want {
						t.Errorf("signal %d, want %d", sig, tt.want)
					}
					return err
				}}
			err := cmd.Run(t.Context(), append([]string{"x"}, tt.args...))
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
		})
	}
}
