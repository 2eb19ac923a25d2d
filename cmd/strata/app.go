package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/stratavm/strata/internal/plaintext"
	"github.com/stratavm/strata/internal/userns"
)

// env is the environment of commands: streams, variables, signals and settings.
type env struct {
	command        []string // after "--"
	dashes         bool     // whether there is a "--"
	json           bool     // --json
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	lookupEnv      func(string) (string, bool)
	silence        time.Duration // how long a VM may take to respond
	grace          time.Duration // between a signal and our end, for each of: the program, and what is taken away
	interrupts     *interrupts
	detached       *detached // set in the supervisor of a detached container
}

const onWindows = runtime.GOOS == "windows"

// groups are the commands in the order of the help. Each group is one file.
var groups = []func(*env) []*cli.Command{
	runCommands,
	specCommands,
	vmCommands,
	imageCommands,
	importCommands,
	storeCommands,
	scratchCommands,
	volumeCommands,
	copyCommands,
	mountCommands,
	execCommands,
	psCommands,
	startCommands,
	stopCommands,
	logCommands,
	statsCommands,
	pauseCommands,
	removeCommands,
	listCommands,
	doctorCommands,
	containerdCommands,
	completionCommands,
	missingCommands,
}

const description = `A layer is a folder with layer.erofs, layer.vhd or layer.dir in it ("strata import" makes one of a tar).
A scratch is a folder with a writable disk ("strata scratch create"). "strata mount" puts layers and a
scratch into a running utility VM and makes one root file system of them; "strata exec" runs programs
in it; "strata unmount" takes it away again. "strata run" does all of that in one go.

There is no daemon: every command works from the state directory, and mends first what an earlier
command that was interrupted left there.

Exit codes: 0 success, 1 failure, 2 wrong usage, 128+n interrupted by signal n (130: Ctrl-C). exec and run
answer with the exit code of the program, 128+n when signal n ended it, and when it could not be started with
127 (no such program), 126 (it cannot be executed) or 125 (anything else). Ctrl-C ends a command and takes back
what it began; a second one ends it at once, and leaves the rest to strata recover.

With --json results are JSON on standard output. What goes wrong is on standard error, one document a line:
{"error": "...", "exitCode": 1}; what is worth knowing before: {"notice": "..."}.`

func (e *env) root() *cli.Command {
	root := &cli.Command{
		Name: "strata", Usage: "container layers into utility VMs", Version: version, Description: description,
		Writer: e.stdout, ErrWriter: e.stderr,
		Suggest: true, HideHelpCommand: true,
		DisableSliceFlagSeparator: true, // paths may hold commas
		UseShortOptionHandling:    true,
		ExitErrHandler:            func(_ context.Context, _ *cli.Command, _ error) {}, // run handles errors
		OnUsageError: func(_ context.Context, cmd *cli.Command, err error, _ bool) error {
			return dockerUsage(cmd, err)
		},
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "state-dir", Sources: cli.EnvVars("STRATA_STATE_DIR"), TakesFile: true,
				Usage: "where VMs keep their state (default: /var/lib/strata, or ~/.local/state/strata when not root)"},
			&cli.BoolFlag{Name: "json", Usage: "print results as JSON"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what would be done, each change of a VM on a line, and do nothing"},
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log every step to standard error"},
			traceFlag(),
		},
		Before: func(ctx context.Context, cmd *cli.Command) (context.Context, error) {
			state, err := e.stateDir(cmd)
			if err != nil {
				return ctx, err
			}
			return ctx, checkPrivate(state)
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Present() {
				return usage(cmd, "there is no command %q", cmd.Args().First())
			}
			return cli.ShowAppHelp(cmd)
		},
	}
	for _, group := range groups {
		root.Commands = append(root.Commands, group(e)...)
	}
	each(root, func(c *cli.Command) {
		c.HideHelpCommand = true
		c.DisableSliceFlagSeparator = true
		c.UseShortOptionHandling = true
		c.OnUsageError = root.OnUsageError
		if c.Action == nil {
			c.Action = func(_ context.Context, cmd *cli.Command) error {
				if first := cmd.Args().First(); first != "" {
					return usage(cmd, "there is no command %q", commandPath(cmd)+" "+first)
				}
				return cli.ShowSubcommandHelp(cmd)
			}
			return
		}
		action := traced(c.Action)
		c.Action = action
		if c.ArgsUsage == "" {
			c.Action = func(ctx context.Context, cmd *cli.Command) error {
				if cmd.Args().Present() {
					return usage(cmd, "it takes no arguments")
				}
				return action(ctx, cmd)
			}
		}
	})
	return root
}

func each(c *cli.Command, f func(*cli.Command)) {
	for _, sub := range c.Commands {
		f(sub)
		each(sub, f)
	}
}

// commandPath returns the command as typed, without the program: "vm start".
func commandPath(cmd *cli.Command) string {
	_, path, _ := strings.Cut(cmd.FullName(), " ")
	return path
}

// examples renders the examples of a command's help.
func examples(lines ...string) string { return "Examples:\n   " + strings.Join(lines, "\n   ") }

// stateDir returns the state directory of the command line, or its default.
func (e *env) stateDir(cmd *cli.Command) (string, error) {
	dir := cmd.String("state-dir")
	if dir == "" {
		dir = e.defaultStateDir()
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("state directory %q: %w", dir, err)
	}
	return abs, nil
}

func (e *env) defaultStateDir() string {
	if runtime.GOOS == "windows" {
		return filepath.Join(e.getenv("ProgramData"), "strata")
	}
	if os.Geteuid() == 0 && !userns.Inside() { // root in a user namespace is an ordinary user outside
		return "/var/lib/strata"
	}
	if dir := e.getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "strata")
	}
	return filepath.Join(e.getenv("HOME"), ".local", "state", "strata")
}

// defaultVM is the VM of commands that name none.
const defaultVM = "default"

// hostVM is the VM name that stands for this system itself.
const hostVM = "host"

// validVM matches names of VMs. containerd's shim uses sandbox ids, of 64 digits.
var (
	validVM   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
)

func vmFlag() cli.Flag {
	return &cli.StringFlag{Name: "vm", Value: defaultVM, Sources: cli.EnvVars("STRATA_VM"),
		Usage: "`NAME` of the utility VM; \"host\" is this system itself"}
}

// vmDir is the state directory of one VM.
func (e *env) vmDir(cmd *cli.Command, name string) (string, error) {
	if !validVM.MatchString(name) {
		return "", usage(cmd, "VM name %q: use 1 to 64 letters, digits, '_', '.' or '-', a letter or digit first", name)
	}
	dir, err := e.stateDir(cmd)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "vms", name), nil
}

func (e *env) logger(cmd *cli.Command) *slog.Logger {
	level := slog.LevelWarn
	if cmd.Bool("verbose") {
		level = slog.LevelDebug
	}
	if e.json {
		return slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))
}

// print writes v as JSON with --json, else what text writes, without control characters.
func (e *env) print(cmd *cli.Command, v any, text func(w io.Writer)) error {
	if cmd.Bool("json") {
		return writeJSON(e.stdout, v, "  ")
	}
	tw := tabwriter.NewWriter(plaintext.Writer{W: e.stdout}, 0, 8, 2, ' ', 0)
	text(tw)
	return tw.Flush()
}

// row writes a row of a table, with cells separated by tabs in the format. Tabs, newlines and control characters in the
// arguments are replaced.
func row(w io.Writer, format string, args ...any) { fmt.Fprint(w, plaintext.Sprintf(format, args...)) }

func writeJSON(w io.Writer, v any, indent string) error {
	var doc bytes.Buffer
	enc := json.NewEncoder(&doc)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(plaintext.JSON(doc.Bytes()))
	return err
}

// stderrJSON writes v as one line of JSON to standard error. Errors are ignored: there is nowhere to report them.
func (e *env) stderrJSON(v any) { _ = writeJSON(e.stderr, v, "") }

// say writes a message for the user to standard error. Control characters in the arguments are replaced.
func (e *env) say(format string, args ...any) {
	text := plaintext.Sprintf(format, args...)
	if e.json {
		e.stderrJSON(struct {
			Notice string `json:"notice"`
		}{strings.TrimPrefix(text, "strata: ")})
		return
	}
	fmt.Fprintln(e.stderr, text)
}

// terminal reports whether f is a terminal, and returns its file descriptor.
func terminal(f any) (fd int, ok bool) {
	file, ok := f.(interface{ Fd() uintptr })
	if !ok {
		return 0, false
	}
	fd = int(file.Fd())
	return fd, term.IsTerminal(fd)
}

// count returns a number with a noun: "1 layer", "2 layers".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// absolute makes paths absolute. An empty path is an error; what names the paths in it.
func absolute(cmd *cli.Command, what string, paths ...string) ([]string, error) {
	out := make([]string, len(paths))
	for i, p := range paths {
		if p == "" {
			return nil, usage(cmd, "%s: the path is empty", what)
		}
		abs, err := filepath.Abs(p)
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", what, p, err)
		}
		out[i] = abs
	}
	return out, nil
}
