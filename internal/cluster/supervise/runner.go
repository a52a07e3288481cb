package supervise

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// runner keeps one unit running.
type runner struct {
	config Config
	unit   Unit
	after  []*runner // needed by this one
	before []*runner // need this one
	// firstAfter are needed by the first start only.
	firstAfter []*runner
	ready      gate
	done       chan struct{} // closed when the runner has returned
	state      State
}

func newRunner(config Config, u Unit) *runner {
	r := &runner{
		config: config, unit: u, done: make(chan struct{}), ready: gate{opened: make(chan struct{})},
		state: State{Name: u.Name, Node: u.Node, Command: u.Command},
	}
	if !u.isStep() {
		r.state.Log = LogPath(config.Logs, u.Name)
	}
	return r
}

// gate is open while a unit is ready.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed while the gate is open
	open   bool
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if open == g.open {
		return
	}
	g.open = open
	if open {
		close(g.opened)
	} else {
		g.opened = make(chan struct{})
	}
}

func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *runner) run(ctx context.Context) {
	defer close(r.done)
	if old, err := ReadState(r.config.Run, r.unit.Name); err == nil {
		r.state.Restarts, r.state.LastExit, r.state.Process = old.Restarts, old.LastExit, old.Process
	}
	var delay time.Duration
	for {
		begin := time.Now()
		message, again := r.once(ctx)
		r.ready.set(false)
		if ctx.Err() != nil {
			r.set(Stopped, "")
			return
		}
		if !again {
			return
		}
		delay = nextDelay(delay, time.Since(begin))
		r.set(Backoff, message)
		r.config.Log.Warn("unit ended; it is started again", "unit", r.unit.Name, "after", delay, "reason", message)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// once brings the unit up and stays with it until it ends. It returns why it ended and whether to start it again.
func (r *runner) once(ctx context.Context) (message string, again bool) {
	process, err := r.adopt()
	if err != nil {
		return err.Error(), true
	}
	if process == nil {
		if err := r.waitForOthers(ctx); err != nil {
			return err.Error(), true
		}
		if r.unit.isStep() {
			return r.step(ctx)
		}
		if process, err = r.start(ctx); err != nil {
			return err.Error(), true
		}
	}
	return r.stay(ctx, process), true
}

func (r *runner) waitForOthers(ctx context.Context) error {
	needed := r.after
	if r.state.Process == nil {
		needed = slices.Concat(needed, r.firstAfter)
	}
	for _, other := range needed {
		r.set(Waiting, WaitsFor+other.unit.Name)
		if err := other.ready.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step does a unit without a process. It stays ready until the supervisor ends.
func (r *runner) step(ctx context.Context) (message string, again bool) {
	r.set(Starting, "")
	if err := r.prepare(ctx); err != nil {
		return err.Error(), true
	}
	r.set(Ready, "")
	r.ready.set(true)
	<-ctx.Done()
	r.waitForDependents()
	return "", false
}

// prepare counts how often it failed in a row; whoever waits for the unit gives up some time.
func (r *runner) prepare(ctx context.Context) error {
	err := r.unit.Prepare(ctx)
	if err == nil {
		r.state.Failures = 0
	} else if ctx.Err() == nil {
		r.state.Failures++
	}
	return err
}

// adopt finds the process that an earlier supervisor started. One that runs another command or an older version is stopped.
func (r *runner) adopt() (*handle, error) {
	if r.unit.isStep() {
		return nil, nil
	}
	found := r.state.Process
	if !found.Alive() {
		pid, ok := findByMark(r.config.markOf(r.unit.Name), r.unit.Command)
		if !ok {
			return nil, nil
		}
		process, err := Identify(pid)
		if err != nil {
			return nil, nil // it ended in the meantime
		}
		found = &process
	}
	if !hasEnv(found.PID, r.config.markOf(r.unit.Name)) {
		return nil, nil
	}
	process, err := openProcess(found)
	if err != nil {
		return nil, nil // it ended in the meantime
	}
	if !runs(found.PID, r.unit.Command) || !RunsProgram(found.PID, r.unit.Command[0]) {
		r.config.Log.Info("unit runs another command or version; it is started anew", "unit", r.unit.Name, "pid", found.PID)
		return nil, r.stop(process, r.watch(process))
	}
	r.state.Process, r.state.Adopted = found, true
	r.state.Phase = Starting // its probe has to tell
	r.save()
	r.config.Log.Info("adopted", "unit", r.unit.Name, "pid", found.PID)
	return process, nil
}

// start prepares and starts the process.
func (r *runner) start(ctx context.Context) (*handle, error) {
	r.set(Starting, "")
	if r.unit.Prepare != nil {
		if err := r.prepare(ctx); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", r.unit.Name, err)
		}
	}
	cmd := exec.Command(r.unit.Command[0], r.unit.Command[1:]...)
	cmd.Dir, cmd.Env = "/", r.config.processEnv(r.unit)
	// A session of its own: a terminal's signals are for the command line, not for the cluster.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := openLog(r.state.Log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", r.unit.Name, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := r.within(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", r.unit.Name, err)
	}
	process := &handle{child: cmd.Process}
	r.started(cmd.Process)
	return process, nil
}

// started writes down the new process at once: until then only its mark tells whose it is.
func (r *runner) started(p *os.Process) {
	if r.state.Process != nil {
		r.state.Restarts++
	}
	identity, err := Identify(p.Pid)
	if err != nil {
		identity = Process{PID: p.Pid} // it has ended already, and is not alive under this identity
	}
	r.state.Process, r.state.Adopted = &identity, false
	r.save()
	r.config.Log.Info("started", "unit", r.unit.Name, "pid", p.Pid)
}

func (r *runner) within(f func() error) error {
	if r.unit.Within == nil {
		return f()
	}
	return r.unit.Within(f)
}

// watch tells when and how a process ends.
func (r *runner) watch(process *handle) <-chan string {
	ended := make(chan string, 1)
	go func() {
		ended <- process.wait()
		process.close()
	}()
	return ended
}

// stay brings a running process to readiness and watches its health until it ends.
func (r *runner) stay(ctx context.Context, process *handle) string {
	ended := r.watch(process)
	ticker := time.NewTicker(startInterval)
	defer ticker.Stop()
	initialised := false
	for {
		if err := r.check(ctx, &initialised); err == nil {
			r.ready.set(true)
			r.set(Ready, "")
			ticker.Reset(healthInterval)
		} else if ctx.Err() == nil {
			r.unhealthy(err)
		}
		select {
		case reason := <-ended:
			r.state.LastExit = fmt.Sprintf("%s at %s", reason, time.Now().Format(time.RFC3339))
			return reason
		case <-ctx.Done():
			r.waitForDependents()
			if err := r.stop(process, ended); err != nil {
				r.config.Log.Error("cannot stop unit", "unit", r.unit.Name, "error", err)
			}
			return ""
		case <-ticker.C:
		}
	}
}

// unhealthy keeps the phase Starting for a process that was never ready.
func (r *runner) unhealthy(err error) {
	phase := Failing
	if r.state.Phase != Ready && r.state.Phase != Failing {
		phase = Starting
	}
	r.set(phase, err.Error())
}

func (r *runner) check(ctx context.Context, initialised *bool) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if !*initialised && r.unit.Started != nil {
		if err := r.unit.Started(ctx); err != nil {
			return err
		}
	}
	*initialised = true
	if r.unit.Probe == nil {
		return nil
	}
	return r.unit.Probe(ctx)
}

func (r *runner) waitForDependents() {
	for _, other := range r.before {
		<-other.done
	}
}

// stop asks the process to end, and kills it when its grace is over.
func (r *runner) stop(process *handle, ended <-chan string) error {
	if err := process.signal(stopSignal); err != nil {
		return err
	}
	grace := time.NewTimer(r.unit.Grace)
	defer grace.Stop()
	select {
	case r.state.LastExit = <-ended:
		return nil
	case <-grace.C:
	}
	if err := process.signal(syscall.SIGKILL); err != nil {
		return err
	}
	r.state.LastExit = <-ended
	return nil
}

// set writes the state down when it changed.
func (r *runner) set(phase Phase, message string) {
	if r.state.Phase == phase && r.state.Message == message {
		return
	}
	if r.state.Phase != phase {
		r.state.Since = time.Now()
	}
	r.state.Phase, r.state.Message = phase, message
	r.save()
}

func (r *runner) save() {
	if err := WriteState(r.config.Run, r.state); err != nil {
		r.config.Log.Error("cannot write down the state", "unit", r.unit.Name, "error", err)
	}
}
