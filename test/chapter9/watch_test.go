package chapter9

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// watchPhases watches a namespace's migrations from now on, as a user does. The function that it returns says which phases were shown, one after
// the other, once there is an end.
func watchPhases(t *testing.T, ns string) func() []string {
	t.Helper()
	var out, log screen
	cmd := exec.CommandContext(t.Context(), filepath.Join(cluster.Root(), "bin", "patchbay"), "kubectl", "--name", cluster.Name, "--",
		"get", "VirtualMachineInstanceMigration", "-w", "-n", ns, "-v", "6")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &log, time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() {
		_ = cmd.Process.Kill() // it would watch on
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	cluster.Eventually(t, soon, "the watch begins", func() error {
		if !strings.Contains(log.String(), "watch=true") { // kubectl tells of a request when it is answered
			return fmt.Errorf("kubectl says %q", log.String())
		}
		return nil
	})
	shown := func() (phases []string) {
		for _, line := range strings.Split(out.String(), "\n") {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] != "NAME" {
				phases = append(phases, fields[1])
			}
		}
		return slices.Compact(phases) // a row comes for every change
	}
	return func() []string {
		t.Helper()
		cluster.Eventually(t, soon, "the watch shows the end", func() error {
			if !slices.Contains(shown(), "Succeeded") {
				return fmt.Errorf("it shows %v", shown())
			}
			return nil
		})
		stop()
		return shown()
	}
}

// screen is what a program has printed so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}
