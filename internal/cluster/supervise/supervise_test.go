package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// helperVariable makes the test program a supervisor over the directory it names, so that a test can kill it.
const helperVariable = "PATCHBAY_TEST_SUPERVISOR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperVariable); dir != "" {
		s, err := New(testConfig(dir), []Unit{sleeper("one")})
		if err != nil {
			panic(err)
		}
		_ = s.Run(context.Background())
		return
	}
	os.Exit(m.Run())
}

func testConfig(dir string) Config {
	return Config{Run: filepath.Join(dir, "run"), Logs: filepath.Join(dir, "logs"), Mark: dir, Log: slog.New(slog.DiscardHandler)}
}

// sleeper is a process that does nothing for longer than any test.
func sleeper(name string, after ...string) Unit {
	return Unit{Name: name, Command: []string{"/bin/sleep", "1000"}, Env: []string{"A=b"}, After: after, Grace: time.Second}
}

// run starts a supervisor that is stopped, with its units, when the test ends.
func run(t *testing.T, dir string, units ...Unit) (stop func()) {
	t.Helper()
	s, err := New(testConfig(dir), units)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits for a state that satisfies check and returns it.
func eventually(t *testing.T, dir, unit, what string, check func(State) bool) State {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(20 * time.Second)
	for {
		s, err := ReadState(filepath.Join(dir, "run"), unit)
		if err != nil {
			t.Fatal(err)
		}
		if check(s) {
			return s
		}
		select {
		case <-ticker.C:
		case <-timeout:
			t.Fatalf("%s: %s did not happen; the state is %+v", unit, what, s)
		}
	}
}

func ready(s State) bool { return s.Phase == Ready && (len(s.Command) == 0 || s.Process.Alive()) }

func TestProcessesRunWithTheirEnvironmentAndMark(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, sleeper("node-1/one"))
	s := eventually(t, dir, "node-1/one", "ready", ready)
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Process.PID))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("A=b\x00PATCHBAY_UNIT="+dir+":node-1/one\x00", string(environment)); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if s.Log != filepath.Join(dir, "logs", "node-1-one.log") {
		t.Errorf("log is %s", s.Log)
	}
}

func TestOutputGoesToTheLog(t *testing.T) {
	dir := t.TempDir()
	u := sleeper("one")
	u.Command = []string{"/bin/sh", "-c", "echo to stdout; echo to stderr >&2; exec sleep 1000"}
	u.Probe = func(context.Context) error {
		data, err := os.ReadFile(LogPath(filepath.Join(dir, "logs"), "one"))
		if err == nil && string(data) != "to stdout\nto stderr\n" {
			err = fmt.Errorf("log holds %q", data)
		}
		return err
	}
	run(t, dir, u)
	eventually(t, dir, "one", "the log is complete", ready)
}

func TestAUnitWaitsForThoseItNeeds(t *testing.T) {
	dir := t.TempDir()
	open := make(chan struct{})
	first := sleeper("first")
	first.Probe = func(ctx context.Context) error {
		select {
		case <-open:
			return nil
		default:
			return fmt.Errorf("not yet")
		}
	}
	run(t, dir, first, sleeper("second", "first"))
	eventually(t, dir, "first", "its probe is asked", func(s State) bool { return s.Phase == Starting && s.Message == "not yet" })
	if s := eventually(t, dir, "second", "it waits", func(s State) bool { return s.Phase == Waiting && s.Message != "" }); s.Message != "waits for first" || s.Process != nil {
		t.Errorf("second has started too early: %+v", s)
	}
	close(open)
	eventually(t, dir, "second", "ready", ready)
}

func TestTheFirstStartWaitsForMore(t *testing.T) {
	dir := t.TempDir()
	never := sleeper("never")
	never.Probe = func(context.Context) error { return fmt.Errorf("not yet") }
	second := sleeper("second")
	second.FirstAfter = []string{"never"}
	stop := run(t, dir, never, second)
	eventually(t, dir, "second", "it waits", func(s State) bool { return s.Message == "waits for never" })
	stop()
	// It ran once, in an earlier life of the host.
	writeTestState(t, dir, State{Name: "second", Phase: Waiting, Process: &Process{PID: 1, Boot: "earlier"}})
	run(t, dir, never, second)
	eventually(t, dir, "second", "ready", ready)
}

func TestStepsAreRepeatedUntilTheySucceed(t *testing.T) {
	dir := t.TempDir()
	tries := 0
	step := Unit{Name: "step", Prepare: func(context.Context) error {
		if tries++; tries < 3 {
			return fmt.Errorf("try %d", tries)
		}
		return nil
	}}
	run(t, dir, step, sleeper("process", "step"))
	eventually(t, dir, "process", "ready", ready)
	if tries != 3 {
		t.Errorf("the step was tried %d times, want 3", tries)
	}
}

func TestAKilledProcessIsStartedAgain(t *testing.T) {
	dir := t.TempDir()
	started := 0
	u := sleeper("one")
	u.Started = func(context.Context) error { started++; return nil }
	stop := run(t, dir, u)
	before := eventually(t, dir, "one", "ready", ready)
	if err := before.Process.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := eventually(t, dir, "one", "it runs again", func(s State) bool { return ready(s) && s.Process.PID != before.Process.PID })
	if after.Restarts != 1 || !strings.HasPrefix(after.LastExit, "signal: killed at ") {
		t.Errorf("restarts %d, last exit %q", after.Restarts, after.LastExit)
	}
	stop()
	if started != 2 {
		t.Errorf("Started ran %d times, want once per start", started)
	}
}

func TestTheNextSupervisorAdoptsWhatAKilledOneLeft(t *testing.T) {
	dir := t.TempDir()
	first := exec.Command(os.Args[0])
	first.Env = append(os.Environ(), helperVariable+"="+dir)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	before := eventually(t, dir, "one", "ready", ready)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // reports the signal
	if !before.Process.Alive() {
		t.Fatal("the process ended with its supervisor")
	}
	if err := Forget(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	stop := run(t, dir, sleeper("one"))
	after := eventually(t, dir, "one", "adopted", ready)
	if after.Process.PID != before.Process.PID || !after.Adopted || after.Restarts != 0 {
		t.Errorf("adopted %+v, want process %d", after, before.Process.PID)
	}
	stop()
	if before.Process.Alive() {
		t.Error("an orderly stop left the adopted process")
	}
}

func TestAnAdoptedProcessIsWatched(t *testing.T) {
	dir := t.TempDir()
	orphan := orphan(t, dir, "one", "/bin/sleep", "1000")
	run(t, dir, sleeper("one"))
	before := eventually(t, dir, "one", "adopted", ready)
	if before.Process.PID != orphan || !before.Adopted {
		t.Fatalf("state is %+v, want adopted process %d, which nobody wrote down", before, orphan)
	}
	if err := before.Process.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := eventually(t, dir, "one", "it runs again", func(s State) bool { return ready(s) && !s.Adopted })
	if after.Restarts != 1 {
		t.Errorf("restarts %d, want 1", after.Restarts)
	}
}

func TestAProcessWithAnotherCommandIsReplaced(t *testing.T) {
	dir := t.TempDir()
	old := orphan(t, dir, "one", "/bin/sleep", "999")
	identity, err := Identify(old)
	if err != nil {
		t.Fatal(err)
	}
	writeTestState(t, dir, State{Name: "one", Process: &identity, Phase: Ready})
	run(t, dir, sleeper("one"))
	s := eventually(t, dir, "one", "replaced", func(s State) bool { return ready(s) && s.Process.PID != old })
	if identity.Alive() || s.Adopted {
		t.Errorf("the old process lives: %v; state %+v", identity.Alive(), s)
	}
}

func TestAForeignProcessIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	foreign := orphan(t, dir+"-other", "one", "/bin/sleep", "1000")
	identity, err := Identify(foreign)
	if err != nil {
		t.Fatal(err)
	}
	// As if the number had been given to another program since the state was written.
	writeTestState(t, dir, State{Name: "one", Process: &identity, Phase: Waiting})
	stop := run(t, dir, sleeper("one"))
	s := eventually(t, dir, "one", "ready", ready)
	stop()
	if s.Process.PID == foreign || !identity.Alive() {
		t.Errorf("a process without our mark was adopted or ended: %+v", s)
	}
}

// orphan starts a process as a supervisor of dir would, without writing it down.
func orphan(t *testing.T, dir, unit string, command ...string) int {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = []string{MarkPrefix(dir) + unit}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // nobody else reaps it
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd.Process.Pid
}

func writeTestState(t *testing.T, dir string, s State) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteState(filepath.Join(dir, "run"), s); err != nil {
		t.Fatal(err)
	}
}

func TestStopEndsDependentsFirstAndKillsTheStubborn(t *testing.T) {
	dir := t.TempDir()
	order := filepath.Join(dir, "order")
	talker := func(name string, after ...string) Unit {
		u := sleeper(name, after...)
		u.Command = []string{"/bin/sh", "-c", fmt.Sprintf("trap 'echo %s >>%s; exit' TERM; while :; do sleep 0.02; done", name, order)}
		return u
	}
	stubborn := sleeper("stubborn", "base")
	stubborn.Command = []string{"/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.02; done"}
	stubborn.Grace = 100 * time.Millisecond
	stop := run(t, dir, talker("base"), talker("top", "base"), stubborn)
	for _, name := range []string{"base", "top", "stubborn"} {
		eventually(t, dir, name, "ready", ready)
	}
	stop()
	data, err := os.ReadFile(order)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("top\nbase\n", string(data)); diff != "" {
		t.Errorf("order of the ends (-want +got):\n%s", diff)
	}
	s := eventually(t, dir, "stubborn", "stopped", func(s State) bool { return s.Phase == Stopped })
	if s.LastExit != "signal: killed" || s.Process.Alive() {
		t.Errorf("the stubborn one ended with %q", s.LastExit)
	}
}

func TestAHealthyProcessThatFailsIsShown(t *testing.T) {
	dir := t.TempDir()
	sick := filepath.Join(dir, "sick")
	u := sleeper("one")
	u.Probe = func(context.Context) error {
		if _, err := os.Stat(sick); err == nil {
			return fmt.Errorf("no answer")
		}
		return nil
	}
	run(t, dir, u)
	before := eventually(t, dir, "one", "ready", ready)
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := eventually(t, dir, "one", "failing", func(s State) bool { return s.Phase == Failing })
	if s.Message != "no answer" || s.Process.PID != before.Process.PID {
		t.Errorf("state is %+v", s)
	}
}
