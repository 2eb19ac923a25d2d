package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/urfave/cli/v3"

	"github.com/stratavm/strata"
	"github.com/stratavm/strata/vmm"
)

func startCommands(e *env) []*cli.Command {
	keys := func() cli.Flag {
		return &cli.StringFlag{Name: "detach-keys", Value: defaultDetachKeys,
			Usage: "`KEYS` that leave the container to itself: letters or ctrl-LETTER, with commas"}
	}
	return []*cli.Command{{
		Name: "start", Usage: "start containers again that have ended", ArgsUsage: "CONTAINER...",
		Description: "The same program, in the files that it left. With --attach the exit code is that of the program.\n\n" +
			examples("strata start web", "strata start --attach web"),
		Flags: []cli.Flag{keys(),
			&cli.BoolFlag{Name: "attach", Aliases: []string{"a"}, Usage: "show what the program writes, until it ends"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "with --attach: connect standard input"},
		},
		Action: e.start,
	}, {
		Name: "attach", Usage: "connect to the program of a container that runs", ArgsUsage: "CONTAINER",
		Description: "What it writes from now on is shown, and where it was started with --interactive it reads\n" +
			"standard input. The exit code is that of the program. INT, TERM and QUIT are passed on to it; ctrl-p ctrl-q\n" +
			"leaves a container with a terminal to itself. When this command is killed the program goes on.\n\n" +
			examples("strata attach web", "strata attach --no-stdin web"),
		Flags: []cli.Flag{keys(),
			&cli.BoolFlag{Name: "no-stdin", Usage: "do not connect standard input"},
			&cli.BoolFlag{Name: "sig-proxy", Value: true, Usage: "pass signals on"},
		},
		Action: e.attach,
	}, {
		Name: "restart", Usage: "stop containers and start them again", ArgsUsage: "CONTAINER...",
		Description: examples("strata restart web"),
		Flags:       stopFlags(),
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
				if r.Foreground || r.AutoRemove {
					return fmt.Errorf("container %s is removed when it ends: it cannot be started again", r.Name)
				}
				if err := e.stopOne(ctx, cmd, cs, r); err != nil || cmd.Bool("dry-run") {
					return err
				}
				return e.startOne(ctx, cmd, r)
			})
		},
	}}
}

func (e *env) start(ctx context.Context, cmd *cli.Command) error {
	if cmd.Bool("attach") || cmd.Bool("interactive") {
		return e.startAttached(ctx, cmd)
	}
	return e.eachContainer(ctx, cmd, func(cs *strata.Containers, r strata.ContainerRecord) error {
		running, err := cs.Running(r.Name)
		switch {
		case cmd.Bool("dry-run"):
			return e.would(cmd, "start container %s", r.Name)
		case err != nil:
			return err
		case running && r.Paused:
			return containerError(r, vmm.ErrPaused)
		case running:
			return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
		}
		return e.startOne(ctx, cmd, r)
	})
}

// again returns the recorded command line of a container, and the additional arguments for starting it again.
func again(r strata.ContainerRecord) (how launch, also []string, err error) {
	if err := json.Unmarshal(r.Launch, &how); err != nil {
		return how, nil, fmt.Errorf("container %s: its record does not say how to start it: %w", r.Name, err)
	}
	return how, []string{"--supervise", "--again", r.Name}, nil
}

func (e *env) startOne(ctx context.Context, cmd *cli.Command, r strata.ContainerRecord) error {
	how, also, err := again(r)
	if err != nil {
		return err
	}
	if _, err = e.startSupervisor(ctx, cmd, how, also, nil); err != nil {
		return err
	}
	return e.print(cmd, named{r.ID, r.Name}, func(w io.Writer) { row(w, "%s\n", r.Name) })
}

// startAttached starts a container and attaches to it.
func (e *env) startAttached(ctx context.Context, cmd *cli.Command) error {
	cs, r, err := e.oneContainer(ctx, cmd)
	if err != nil {
		return notRun(err)
	}
	if cmd.Bool("dry-run") {
		return e.would(cmd, "start container %s", r.Name)
	}
	running, err := cs.Running(r.Name)
	if err != nil {
		return notRun(err)
	}
	if running {
		return e.attachTo(ctx, cmd, cs, r, cmd.Bool("interactive"))
	}
	how, also, err := again(r)
	if err != nil {
		return notRun(err)
	}
	also = append(also, "--await")
	var p vmm.Process
	a, err := e.newAttacher(cmd, r, cmd.Bool("interactive"))
	if err != nil {
		return err
	}
	if _, err := e.startSupervisor(ctx, cmd, how, also, func() (err error) {
		p, err = cs.Control(r.Name).Attach(ctx, a.spec)
		return err
	}); err != nil {
		if p != nil {
			err = errors.Join(err, p.Close())
		}
		return err
	}
	return a.follow(ctx, cs, r, p)
}

func (e *env) attach(ctx context.Context, cmd *cli.Command) error {
	cs, r, err := e.oneContainer(ctx, cmd)
	if err != nil {
		return notRun(err)
	}
	err = needRunning(cs, r)
	if errors.Is(err, strata.ErrContainerStopped) {
		err = fmt.Errorf("%w; to start it: strata start --attach %s", err, r.Name)
	}
	if err != nil {
		return notRun(err)
	}
	return e.attachTo(ctx, cmd, cs, r, !cmd.Bool("no-stdin"))
}

func (e *env) attachTo(ctx context.Context, cmd *cli.Command, cs *strata.Containers, r strata.ContainerRecord,
	stdin bool) error {
	a, err := e.newAttacher(cmd, r, stdin)
	if err != nil {
		return err
	}
	if r.Paused {
		return notRun(containerError(r, vmm.ErrPaused))
	}
	p, err := cs.Control(r.Name).Attach(ctx, a.spec)
	if err != nil {
		return notRun(fmt.Errorf("container %s: %w", r.Name, err))
	}
	return a.follow(ctx, cs, r, p)
}

// attacher is the local end of an attached container.
type attacher struct {
	e      *env
	spec   vmm.ProcessSpec
	raw    bool // put our terminal into raw mode
	proxy  bool
	detach <-chan struct{} // closed when the detach keys were pressed
}

func (e *env) newAttacher(cmd *cli.Command, r strata.ContainerRecord, stdin bool) (*attacher, error) {
	keys, err := parseKeys(cmd.String("detach-keys"))
	if err != nil {
		return nil, usage(cmd, "--detach-keys: %w", err)
	}
	_, local := terminal(e.stdin)
	a := &attacher{e: e, raw: local && r.Process.Terminal,
		proxy: !cmd.IsSet("sig-proxy") || cmd.Bool("sig-proxy"),
		spec:  vmm.ProcessSpec{Stdout: e.stdout, Stderr: e.stderr}}
	pressed := make(chan struct{})
	a.detach = pressed
	if stdin && r.OpenStdin {
		a.spec.Stdin = e.stdin
		if a.raw {
			a.spec.Stdin = &keyReader{from: e.stdin, keys: keys, pressed: pressed}
		}
	}
	return a, nil
}

// follow shows the output of a program until it ends or the user detaches.
func (a *attacher) follow(ctx context.Context, cs *strata.Containers, r strata.ContainerRecord, p vmm.Process) error {
	defer p.Close() // closes only the connection
	if a.raw {
		restore, err := a.e.rawTerminal()
		if err != nil {
			return err
		}
		defer restore()
		w, h := terminalSize(a.e.stdinFd())
		_ = p.Resize(ctx, w, h) // the next change tries again
		defer a.e.followSize(ctx, p)()
	}
	defer a.e.interrupts.passQuit(func() { a.pass(p, syscall.SIGQUIT) })()
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		code, err := p.Wait(alive)
		switch {
		case err != nil:
			ended <- &exitError{exitNotRun, fmt.Errorf("container %s: %w", r.Name, err)}
		case code != 0:
			ended <- &exitError{code: code}
		default:
			ended <- nil
		}
	}()
	told := ctx.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-a.detach:
			return nil
		case <-told:
			i, ok := errors.AsType[*interruption](context.Cause(ctx))
			if !a.proxy || !ok || i.sig == syscall.SIGPIPE || i.sig == syscall.SIGHUP {
				return context.Cause(ctx) // the program keeps running
			}
			a.pass(p, i.sig)
			told = nil // a second signal ends us at once
		}
	}
}

// pass passes a signal on.
func (a *attacher) pass(p vmm.Process, sig syscall.Signal) {
	if err := p.Signal(context.Background(), int(sig)); err != nil {
		a.e.say("strata: %v", err)
	}
}

// defaultDetachKeys are the same as docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// parseKeys parses a comma-separated list of keys: single characters, or ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-\,
// ctrl-], ctrl-^ and ctrl-_.
func parseKeys(s string) ([]byte, error) {
	var keys []byte
	for _, key := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ctrl && len(c) == 1 && (c[0] >= 'a' && c[0] <= 'z' || strings.Contains(`@[\]^_`, c)):
			keys = append(keys, strings.ToUpper(c)[0]&0x1f)
		case !ctrl && len(key) == 1 && key[0] > ' ' && key[0] < 0x7f:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("%q: use letters or ctrl-LETTER, with commas, such as %s", s, defaultDetachKeys)
		}
	}
	return keys, nil
}

// keyReader is a reader that ends at the detach keys. A partial match is held back until the next key.
type keyReader struct {
	from    io.Reader
	keys    []byte
	matched int
	pressed chan<- struct{}
	out     []byte // to be returned by Read
	over    bool   // the detach keys followed out
}

// Read implements io.Reader.
func (k *keyReader) Read(b []byte) (int, error) {
	for len(k.out) == 0 {
		if k.over {
			close(k.pressed)
			return 0, io.EOF
		}
		var in [1024]byte
		n, err := k.from.Read(in[:])
		for _, c := range in[:n] {
			if k.over = k.key(c); k.over {
				break
			}
		}
		if err != nil && len(k.out) == 0 && !k.over {
			return 0, err
		}
	}
	n := copy(b, k.out)
	k.out = k.out[n:]
	return n, nil
}

// key handles one key and reports whether it completes the detach keys.
func (k *keyReader) key(c byte) bool {
	if c != k.keys[k.matched] && k.matched > 0 {
		k.out = append(k.out, k.keys[:k.matched]...)
		k.matched = 0
	}
	if c != k.keys[k.matched] {
		k.out = append(k.out, c)
		return false
	}
	k.matched++
	return k.matched == len(k.keys)
}
