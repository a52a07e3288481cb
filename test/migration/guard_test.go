package migration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// guard looks at the QEMUs of a namespace's machines all the time: how long their virtual processors have run. A guest that stands still, as on
// the target of a migration and on its source afterwards, uses no processor. So it is seen when two run, also one shortly after the other.
type guard struct {
	ns   string
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	engines map[int]*engine    // by process
	runs    map[string]*engine // the one that runs each machine
	errs    []string
}

// engine is a QEMU.
type engine struct {
	pid, launcher int
	machine       string
	used          time.Duration // by its virtual processors
	mark          time.Duration // used when it was first seen, or when another took over
	ran           bool          // it ran the guest until another did
	over          bool
}

// enough is how long a virtual processor must have run to be sure that the guest does.
const enough = 200 * time.Millisecond

// How often the processors of known QEMUs are looked at, and after how many times new ones are searched for.
const (
	lookInterval = 50 * time.Millisecond
	searchEvery  = 8
)

func watch(t *testing.T, ns string) *guard {
	ctx, cancel := context.WithCancel(context.Background())
	w := &guard{ns: ns, stop: cancel, done: make(chan struct{}), engines: map[int]*engine{}, runs: map[string]*engine{}}
	go w.follow(ctx)
	t.Cleanup(func() { w.stop(); <-w.done })
	return w
}

func (w *guard) follow(ctx context.Context) {
	defer close(w.done)
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		w.mu.Lock()
		if n%searchEvery == 0 {
			w.search()
		}
		for _, e := range w.engines {
			w.look(e)
		}
		w.mu.Unlock()
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (w *guard) search() {
	name := regexp.MustCompile("guest=" + w.ns + "_([^,]+),")
	programs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range programs {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if w.engines[pid] != nil {
			continue
		}
		text, _ := os.ReadFile(path) // it may have ended
		m := name.FindSubmatch(text)
		if m == nil {
			continue
		}
		if used, ok := processors(pid); ok {
			w.engines[pid] = &engine{pid: pid, launcher: parent(pid), machine: string(m[1]), used: used, mark: used}
		}
	}
}

// look notes who runs a guest. Another than before may begin to; the one before must not run it again.
func (w *guard) look(e *engine) {
	used, ok := processors(e.pid)
	if e.over = e.over || !ok; e.over {
		return
	}
	e.used = used
	before := w.runs[e.machine]
	if e == before || e.used-e.mark < enough {
		return
	}
	if e.ran {
		w.errs = append(w.errs, fmt.Sprintf("QEMU %d ran %s, then %d did, and now %d again", e.pid, e.machine, before.pid, e.pid))
	}
	if before != nil {
		before.mark, before.ran = before.used, true
	}
	w.runs[e.machine] = e
}

// living are the QEMUs of a machine.
func (w *guard) living(machine string) []engine {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []engine
	for _, e := range w.engines {
		if e.machine == machine && !e.over {
			all = append(all, *e)
		}
	}
	return all
}

// runner is the QEMU that runs a machine. Others may wait.
func (w *guard) runner(t *testing.T, machine string) engine {
	t.Helper()
	var found engine
	lab.Eventually(t, limit, "a QEMU runs "+machine, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if e := w.runs[machine]; e != nil && !e.over {
			found = *e
			return nil
		}
		return fmt.Errorf("none is seen to run")
	})
	return found
}

// waiter is the QEMU that waits for a machine.
func (w *guard) waiter(t *testing.T, machine string) engine {
	t.Helper()
	runner := w.runner(t, machine)
	var found engine
	lab.Eventually(t, limit, "a QEMU waits for "+machine, func() error {
		for _, e := range w.living(machine) {
			if e.pid != runner.pid {
				found = e
				return nil
			}
		}
		return fmt.Errorf("%d is alone", runner.pid)
	})
	return found
}

// alone waits until one QEMU is left of a machine, and checks that there were never two that ran it.
func (w *guard) alone(t *testing.T, machine string) {
	t.Helper()
	lab.Eventually(t, limit, "one QEMU is left of "+machine, func() error {
		if all := w.living(machine); len(all) != 1 {
			return fmt.Errorf("there are %+v", all)
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range w.errs {
		t.Error(text)
	}
}

// has says that a QEMU has written to a disk: the first thing that it does with one that arrives.
func (w *guard) has(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	var read, written int64
	_, _ = fmt.Sscanf(string(text), "rchar: %d\nwchar: %d\n", &read, &written)
	return written > 1<<20
}

// processors is how long a QEMU's virtual processors have run; not ok: it has ended.
func processors(pid int) (used time.Duration, ok bool) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	for _, dir := range threads {
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || !strings.HasPrefix(string(name), "CPU ") {
			continue
		}
		text, _ := os.ReadFile(filepath.Join(dir, "schedstat"))
		if fields := strings.Fields(string(text)); len(fields) == 3 {
			n, _ := strconv.ParseInt(fields[0], 10, 64)
			used, ok = used+time.Duration(n), true
		}
	}
	return used, ok
}

// parent is the process that started another: QEMU's launcher.
func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}
