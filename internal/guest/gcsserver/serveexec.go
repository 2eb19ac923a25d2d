package gcsserver

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/mattn/go-shellwords"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/internal/gcs"
)

// dialTimeout bounds dialling the host's ports.
const dialTimeout = 20 * time.Second

func (s *session) exec(ctx context.Context, container string, payload []byte) (base, error) {
	var r gcs.ExecuteRequest
	if err := Decode(payload, &r); err != nil {
		return nil, err
	}
	var params gcs.ProcessParameters
	if err := Decode([]byte(r.Settings.ProcessParameters), &params); err != nil {
		return nil, err
	}
	p, err := processOf(container, params)
	if err != nil {
		return nil, err
	}
	var ports gcs.StdioPorts
	if r.Settings.VsockStdioRelaySettings != nil {
		ports = *r.Settings.VsockStdioRelaySettings
	}
	// The host is listening, and expects the connections before the response.
	streams, err := s.connect(ctx, params, ports)
	if err != nil {
		return nil, err
	}
	p.Streams = streams
	pid, err := s.rt.Exec(context.WithoutCancel(ctx), p)
	if err != nil {
		for _, c := range streams {
			if c != nil {
				c.Close()
			}
		}
		return nil, err
	}
	return &gcs.ExecuteResponse{ProcessId: pid}, nil
}

// processOf converts a request's parameters. Without a program, they select the process of the container's spec.
func processOf(container string, params gcs.ProcessParameters) (Process, error) {
	if params.CreateInUtilityVM {
		container = ""
	}
	p := Process{Container: container, Args: params.CommandArgs, Dir: params.WorkingDirectory,
		MakeDir: params.StrataMakeDir, Terminal: params.EmulateConsole, Instance: params.StrataInstance}
	if len(p.Args) == 0 && params.CommandLine != "" {
		var err error
		if p.Args, err = splitCommandLine(params.CommandLine); err != nil {
			return p, err
		}
	}
	for k, v := range params.Environment {
		p.Env = append(p.Env, k+"="+v)
	}
	if len(params.ConsoleSize) == 2 {
		p.Height, p.Width = params.ConsoleSize[0], params.ConsoleSize[1]
	}
	if o := params.OciProcess; o != nil {
		p.Describe(o)
	} else if p.First = len(p.Args) == 0 && container != ""; p.First {
		return p, nil
	}
	if len(p.Args) == 0 {
		return p, fmt.Errorf("no program given: %w", ErrInvalid)
	}
	return p, nil
}

// Describe sets the fields of p from an OCI process.
func (p *Process) Describe(o *specs.Process) {
	p.Args, p.Env, p.Dir, p.Terminal = o.Args, o.Env, o.Cwd, o.Terminal || p.Terminal
	if p.User = o.User.Username; p.User == "" && (o.User.UID != 0 || o.User.GID != 0) {
		p.User = fmt.Sprintf("%d:%d", o.User.UID, o.User.GID)
	}
	p.Groups = o.User.AdditionalGids
	if o.ConsoleSize != nil {
		p.Height, p.Width = uint16(o.ConsoleSize.Height), uint16(o.ConsoleSize.Width)
	}
}

// splitCommandLine splits a command line at spaces, with quotes and backslashes as in a shell, by the library that
// Microsoft's guest uses. Syntax that needs a shell, such as pipes, is an error.
func splitCommandLine(line string) ([]string, error) {
	parser := shellwords.NewParser()
	args, err := parser.Parse(line)
	switch {
	case err != nil:
		return nil, fmt.Errorf("command line %.200q: a quote or bracket is not closed: %w", line, ErrInvalid)
	case parser.Position >= 0:
		return nil, fmt.Errorf("command line %.200q: only a shell understands what comes at %d: %w", line, parser.Position,
			ErrInvalid)
	}
	return args, nil
}

func (s *session) connect(ctx context.Context, params gcs.ProcessParameters,
	ports gcs.StdioPorts) ([3]net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var conns [3]net.Conn
	wanted := [3]bool{params.CreateStdInPipe, params.CreateStdOutPipe, params.CreateStdErrPipe}
	for i, port := range [3]uint32{ports.StdIn, ports.StdOut, ports.StdErr} {
		if !wanted[i] {
			continue
		}
		conn, err := s.dialStream(ctx, port)
		if err == nil {
			conns[i] = conn
		} else {
			for _, c := range conns {
				if c != nil {
					c.Close()
				}
			}
			return [3]net.Conn{}, fmt.Errorf("connect stream %d of the process: %w", i, err)
		}
	}
	return conns, nil
}

func (s *session) dialStream(ctx context.Context, port uint32) (net.Conn, error) {
	if port == 0 {
		return nil, fmt.Errorf("a stream is wanted but no port given: %w", ErrInvalid)
	}
	return s.dial(ctx, port)
}
