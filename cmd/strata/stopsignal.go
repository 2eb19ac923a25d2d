package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata/vmm"
)

// The real-time signals of Linux, which guests run on any host.
const (
	signalRealTimeMin = 34 // C libraries reserve the first two
	signalRealTimeMax = 64
)

// guestSignals are the signals of Linux by name.
var guestSignals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
	"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17,
	"CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26,
	"PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
	"RTMIN": signalRealTimeMin, "RTMAX": signalRealTimeMax,
}

// parseSignal parses a Linux signal: a number, or a case-insensitive name with or without SIG; RTMIN and RTMAX may have
// an offset, as in SIGRTMIN+3.
func parseSignal(s string) (syscall.Signal, error) {
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	number, known := guestSignals[name]
	for _, base := range []string{"RTMIN+", "RTMAX-"} {
		distance, ok := strings.CutPrefix(name, base)
		if n, err := strconv.ParseUint(distance, 10, 6); ok && err == nil && n <= signalRealTimeMax-signalRealTimeMin {
			known, number = true, signalRealTimeMin+int(n)
			if base == "RTMAX-" {
				number = signalRealTimeMax - int(n)
			}
		}
	}
	if n, err := strconv.ParseUint(s, 10, 7); err == nil {
		number, known = int(n), n > 0 && n <= signalRealTimeMax
	}
	if !known {
		return 0, fmt.Errorf("there is no signal %q: use a name such as TERM or RTMIN+3, or a number from 1 to %d",
			s, signalRealTimeMax)
	}
	return syscall.Signal(number), nil
}

func stopSignalFlag() cli.Flag {
	return &cli.StringFlag{Name: "stop-signal",
		Usage: "`SIGNAL` that asks the program to end (default: that of the image, else TERM)"}
}

// stopSignal returns the stop signal: that of the command line, else that of the image, which may be empty. Windows
// guests only support TERM and KILL.
func stopSignal(cmd *cli.Command, ofImage string) (syscall.Signal, error) {
	if s := cmd.String("stop-signal"); s != "" {
		sig, err := parseSignal(s)
		if err != nil {
			err = usage(cmd, "--stop-signal: %w", err)
		}
		return sig, err
	}
	if ofImage == "" || cmd.String("guest") == string(vmm.Windows) {
		return syscall.SIGTERM, nil
	}
	sig, err := parseSignal(ofImage)
	if err != nil {
		err = fmt.Errorf("the image's stop signal: %w; to use another one: --stop-signal TERM", err)
	}
	return sig, err
}
