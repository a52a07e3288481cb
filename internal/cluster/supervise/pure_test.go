package supervise

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCheckUnits(t *testing.T) {
	cases := map[string]struct {
		units []Unit
		want  string
	}{
		"good":    {[]Unit{{Name: "a"}, {Name: "b", After: []string{"a"}}}, ""},
		"twice":   {[]Unit{{Name: "a"}, {Name: "a"}}, "unit a is there twice"},
		"unknown": {[]Unit{{Name: "a", After: []string{"x"}}}, "unit a waits for x, which is not listed before it"},
		"later":   {[]Unit{{Name: "a", After: []string{"b"}}, {Name: "b"}}, "unit a waits for b, which is not listed before it"},
		"itself":  {[]Unit{{Name: "a", After: []string{"a"}}}, "unit a waits for a, which is not listed before it"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := checkUnits(c.units); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNextDelay(t *testing.T) {
	cases := []struct{ last, ran, want time.Duration }{
		{0, 0, 200 * time.Millisecond},
		{200 * time.Millisecond, time.Second, 400 * time.Millisecond},
		{8 * time.Second, time.Second, 10 * time.Second},
		{10 * time.Second, 0, 10 * time.Second},
		{10 * time.Second, 30 * time.Second, 200 * time.Millisecond},
	}
	for _, c := range cases {
		if got := nextDelay(c.last, c.ran); got != c.want {
			t.Errorf("after a delay of %v and a run of %v: %v, want %v", c.last, c.ran, got, c.want)
		}
	}
}

func TestParseStartTicks(t *testing.T) {
	const rest = " 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3"
	cases := map[string]struct {
		stat string
		want uint64
		err  error
	}{
		"plain":             {"12 (sleep) S" + rest, 4711, nil},
		"brackets in name":  {"12 (a) S (b) S" + rest, 4711, nil},
		"ended":             {"12 (sleep) Z" + rest, 0, errZombie},
		"spaces in name":    {"12 (tmux: server) S" + rest, 4711, nil},
		"ended, not listed": {"12 (sleep) X" + rest, 0, errZombie},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := parseStartTicks(c.stat)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %d, %v; want %d, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestAProcessOfAnotherBootOrStartIsNotAlive(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("this process is said to have ended")
	}
	if age := time.Since(self.Started); age < 0 || age > 10*time.Minute {
		t.Errorf("this process is said to have started %v ago", age)
	}
	otherBoot, otherStart := self, self
	otherBoot.Boot = "00000000-0000-0000-0000-000000000000"
	otherStart.StartTicks++
	for name, p := range map[string]*Process{"another boot": &otherBoot, "another start": &otherStart, "none": nil} {
		if p.Alive() {
			t.Errorf("%s: alive", name)
		}
	}
}

func TestLogsAreCutInPlace(t *testing.T) {
	dir := t.TempDir()
	path := LogPath(dir, "node-1/one")
	log, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	for _, piece := range []string{"first", "second", "third"} {
		if _, err := log.WriteString(strings.Repeat(piece, 1+logLimit/len(piece))); err != nil {
			t.Fatal(err)
		}
		if err := rotateLogs(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := log.WriteString("after"); err != nil {
		t.Fatal(err)
	}
	if err := rotateLogs(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{path: "after", path + ".1": "third", path + ".2": "second"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(data), want) {
			t.Errorf("%s begins with %.10q, want %q", filepath.Base(name), data, want)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("a third old piece is kept")
	}
}

func TestReaperCollectsOnlyWhatNobodyWaitsFor(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var r reaper
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for len(r.seen) == 0 || !r.seen[cmd.Process.Pid] {
		r.reap()
		<-ticker.C
	}
	if children := endedChildren(); len(children) == 0 {
		t.Fatal("a child seen once is collected already")
	}
	r.reap()
	for _, pid := range endedChildren() {
		if pid == cmd.Process.Pid {
			t.Error("a child seen twice is not collected")
		}
	}
	_ = cmd.Wait() // the process is gone; this frees its handle
}
