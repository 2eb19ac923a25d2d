package hcstest

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/stratavm/strata/hcsschema"
	"github.com/stratavm/strata/vmm/hcs"
)

// What a Linux guest does with containers and processes that it is asked for over an external connection, by the rules
// of Microsoft's: a container begins with the process of its document, at the first ExecuteProcess; one that has
// stopped takes no other process; deleting one is refused while something runs in it, and forgets it all the same;
// its bundle is removed with all that is in it, and so is a folder that older guests make for it; a network
// namespace takes one container. A root whose scratch is not below its folder has a folder of the scratch bound over
// that, which goes with a container that names both, or by an unmount of its path.

const (
	nullContainer = "00000000-0000-0000-0000-000000000000"
	infinite      = 0xffffffff
	containerDir  = "/run/gcs/c/" // where older guests make a folder for a container
)

// container is a container of a guest. It is guarded by the service's lock.
type container struct {
	id     string
	config struct {
		OciBundlePath, ScratchDirPath string
		OciSpecification              *specs.Spec
	}
	first     *guestProcess // nil: not started
	processes map[uint32]*guestProcess
}

func (c *container) running() bool {
	for _, p := range c.processes {
		if !p.exited() {
			return true
		}
	}
	return false
}

// guestProcess is a process that a guest started.
type guestProcess struct {
	stop  chan struct{} // closed when it is killed
	ended chan struct{}
	code  uint32 // once it has ended
}

func (p *guestProcess) exited() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *guestProcess) kill() {
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
}

// containerRequest has the members of all requests about containers and processes.
type containerRequest struct {
	ContainerId     string
	ContainerConfig string
	ProcessId       uint32
	TimeoutInMs     uint32
	Options         *struct{ Signal int }
	Settings        struct {
		ProcessParameters       string
		VsockStdioRelaySettings struct{ StdIn, StdOut, StdErr uint32 }
	}
}

// containers does a request; the service is locked.
func (g *guest) containers(name string, r containerRequest) (out map[string]any, hr hcs.HRESULT, message string) {
	switch name {
	case "Create":
		hr, message = g.create(r)
		return nil, hr, message
	case "ExecuteProcess":
		return g.execute(r)
	case "DeleteContainerState":
		hr, message = g.delete(r.ContainerId)
		return nil, hr, message
	}
	c, hr := g.find(r.ContainerId)
	if hr != ok {
		return nil, hr, "no such container: " + r.ContainerId
	}
	switch name {
	case "ShutdownForced", "ShutdownGraceful":
		if !c.running() {
			return nil, fail, "container not running"
		}
		for _, p := range c.processes {
			p.kill()
		}
	case "GetProperties":
		var list []map[string]any
		for pid, p := range c.processes {
			if !p.exited() {
				list = append(list, map[string]any{"ProcessId": pid})
			}
		}
		text, err := json.Marshal(map[string]any{"ProcessList": list})
		if err != nil {
			return nil, fail, err.Error()
		}
		return map[string]any{"Properties": string(text)}, ok, ""
	case "SignalProcess":
		p := c.processes[r.ProcessId]
		if p == nil || p.exited() {
			return nil, notFound, "no such process"
		}
		p.kill()
	}
	return nil, ok, ""
}

// find returns a container, or the VM itself; what concerns processes of the latter alone is not known.
func (g *guest) find(id string) (*container, hcs.HRESULT) {
	if c := g.inside[id]; c != nil {
		return c, ok
	}
	return nil, noSystem
}

func (g *guest) create(r containerRequest) (hcs.HRESULT, string) {
	if _, taken := g.inside[r.ContainerId]; taken {
		return systemExists, r.ContainerId + " exists"
	}
	c := &container{id: r.ContainerId, processes: map[uint32]*guestProcess{}}
	if json.Unmarshal([]byte(r.ContainerConfig), &c.config) != nil || c.config.OciSpecification == nil ||
		c.config.OciBundlePath == "" || c.config.OciSpecification.Process == nil {
		return invalidJSON, "container document"
	}
	fails := func(why string) (hcs.HRESULT, string) {
		g.removeAll(c.config.OciBundlePath)
		g.removeAll(containerDir + c.id)
		return fail, why
	}
	spec := c.config.OciSpecification
	if g.roots[spec.Root.Path].needs == nil {
		return fails(spec.Root.Path + ": no root is mounted there")
	}
	namespace := ""
	if spec.Windows != nil && spec.Windows.Network != nil {
		namespace = strings.ToLower(spec.Windows.Network.NetworkNamespace)
	}
	if user := g.namespaces[namespace]; user != "" {
		return fails(fmt.Sprintf("network namespace %q: previously assigned container pid: of %s", namespace, user))
	}
	g.namespaces[namespace] = c.id // for ever: it is the container's name that is removed with it
	g.inside[c.id] = c
	return ok, ""
}

func (g *guest) delete(id string) (hcs.HRESULT, string) {
	c, hr := g.find(id)
	if hr != ok {
		return hr, "no such container: " + id
	}
	delete(g.inside, id)
	delete(g.namespaces, strings.ToLower(id))
	if c.running() || c.first == nil {
		return fail, "cannot delete container that is not stopped"
	}
	if bundle := c.config.OciBundlePath; g.binds(bundle, c.config.ScratchDirPath) && g.user(bundle) == "" {
		delete(g.mounts, bundle)
	}
	for _, dir := range []string{c.config.OciBundlePath, c.config.ScratchDirPath, containerDir + id} {
		g.removeAll(dir)
	}
	return ok, ""
}

// ended is what is done about a container of the service's own connection when it ends or could not be created.
func (g *guest) ended(c *system) {
	var hosted hcsschema.LinuxHostedSystem
	raw, err := json.Marshal(c.doc.HostedSystem)
	if err != nil || !g.y.linux() || json.Unmarshal(raw, &hosted) != nil {
		return
	}
	g.removeAll(hosted.OciBundlePath)
	g.removeAll(containerDir + c.id)
}

// removeAll removes a folder with all that is in it, whatever is mounted there.
func (g *guest) removeAll(dir string) {
	if dir == "" {
		return
	}
	for target := range g.mounts {
		if target == dir || strings.HasPrefix(target, dir+"/") || strings.HasPrefix(dir, target+"/") {
			g.lost = append(g.lost, target+" by the removal of "+dir)
		}
	}
	for target := range g.roots {
		if target == dir || strings.HasPrefix(target, dir+"/") {
			g.lost = append(g.lost, target+" by the removal of "+dir)
		}
	}
}

// execute starts a process: its streams are connected before the answer.
func (g *guest) execute(r containerRequest) (map[string]any, hcs.HRESULT, string) {
	var params ProcessParameters
	if json.Unmarshal([]byte(r.Settings.ProcessParameters), &params) != nil {
		return nil, invalidJSON, "process parameters"
	}
	c := g.self
	if r.ContainerId != nullContainer && !params.CreateInUtilityVm {
		var hr hcs.HRESULT
		if c, hr = g.find(r.ContainerId); hr != ok {
			return nil, hr, "no such container: " + r.ContainerId
		}
		first := params.OciProcess == nil
		switch {
		case first && c.first != nil:
			return nil, fail, "cannot start a container that has been started"
		case !first && (c.first == nil || c.first.exited()):
			return nil, fail, "cannot exec in a stopped container"
		}
		hosted, err := json.Marshal(c.config)
		if err != nil {
			return nil, fail, err.Error()
		}
		params.Hosted = hosted
	}
	streams, err := g.connect(r)
	if err != nil {
		return nil, fail, err.Error()
	}
	p := &guestProcess{stop: make(chan struct{}), ended: make(chan struct{})}
	g.pid++
	pid := g.pid
	c.processes[pid] = p
	if c != g.self && params.OciProcess == nil {
		c.first = p
	}
	g.s.wg.Go(func() { g.run(c, p, params, streams) })
	return map[string]any{"ProcessId": pid}, ok, ""
}

// connect dials the ports of a process's streams.
func (g *guest) connect(r containerRequest) (streams [3]net.Conn, err error) {
	ports := r.Settings.VsockStdioRelaySettings
	for i, port := range []uint32{ports.StdIn, ports.StdOut, ports.StdErr} {
		if port == 0 {
			continue
		}
		if streams[i], err = g.s.opts.Sockets.Dial(GUID("vm:"+g.y.id), hcs.ServiceID(port)); err != nil {
			return streams, fmt.Errorf("port %d: %w", port, err)
		}
	}
	return streams, nil
}

// run lets a process run. With a container's first process all others end, and before it, as the kernel does it: the
// end of the first is told when the container is empty.
func (g *guest) run(c *container, p *guestProcess, params ProcessParameters, streams [3]net.Conn) {
	var stdin io.Reader = eof{}
	outs := [2]io.Writer{io.Discard, io.Discard}
	if streams[0] != nil {
		stdin = streams[0]
	}
	for i, s := range streams[1:] {
		if s != nil {
			outs[i] = s
		}
	}
	code := make(chan uint32, 1)
	go func() {
		n := uint32(0)
		if g.s.opts.Exec != nil {
			n = g.s.opts.Exec(params, stdin, outs[0], outs[1])
		}
		code <- n
	}()
	select {
	case p.code = <-code:
	case <-p.stop:
		p.code = 128 + 9
	}
	for _, s := range streams {
		if s != nil {
			s.Close()
		}
	}
	for {
		g.s.mu.Lock()
		var others []*guestProcess
		if p == c.first {
			others = slices.DeleteFunc(values(c.processes), func(o *guestProcess) bool { return o == p || o.exited() })
		}
		if len(others) == 0 {
			close(p.ended)
			g.s.mu.Unlock()
			return
		}
		for _, o := range others {
			o.kill()
		}
		g.s.mu.Unlock()
		for _, o := range others {
			<-o.ended
		}
	}
}

// await returns what waits for the end of a process, or of the VM; the service is locked.
func (g *guest) await(r containerRequest) (wait func(out map[string]any), hr hcs.HRESULT, message string) {
	c := g.self
	if r.ContainerId != nullContainer {
		if c, hr = g.find(r.ContainerId); hr != ok {
			return nil, hr, "no such container: " + r.ContainerId
		}
	}
	p := c.processes[r.ProcessId]
	switch {
	case p == nil:
		return nil, notFound, "no such process"
	case r.TimeoutInMs != infinite:
		return nil, invalidArgument, "a wait with a limit"
	}
	return func(out map[string]any) {
		select {
		case <-p.ended:
			out["ExitCode"] = p.code
		case <-g.halted:
			out["Result"], out["ErrorMessage"] = code(noSystem), "the VM ends"
		}
	}, ok, ""
}

// haltContainers ends all that runs: the VM has ended. The service is locked.
func (g *guest) haltContainers() {
	for _, c := range append([]*container{g.self}, values(g.inside)...) {
		for _, p := range c.processes {
			p.kill()
		}
	}
	clear(g.inside)
	clear(g.namespaces)
}

func values[K comparable, V any](m map[K]V) (all []V) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// Lost names the mounts whose content guests have removed, each with the folder that took it along.
func (s *Service) Lost() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lost []string
	for _, y := range s.systems {
		lost = append(lost, y.guest.lost...)
	}
	slices.Sort(lost)
	return slices.Compact(lost)
}

// Containers names the containers that guests know.
func (s *Service) Containers() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, y := range s.systems {
		for id := range y.guest.inside {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
