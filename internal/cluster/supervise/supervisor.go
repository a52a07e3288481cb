package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config says where a supervisor keeps its files.
type Config struct {
	Run  string // directory of state files
	Logs string // directory of log files
	// Mark identifies this supervisor's processes among all of the host: it stands in their environment. Processes that they
	// start inherit it.
	Mark string
	Log  *slog.Logger
}

// MarkVariable is the environment variable that carries the mark and, after a colon, the unit's name.
const MarkVariable = "PATCHBAY_UNIT"

// How often a unit is asked for its health: quickly until it is ready, then rarely.
const (
	startInterval  = 50 * time.Millisecond
	healthInterval = 3 * time.Second
	probeTimeout   = 3 * time.Second
)

// Supervisor runs units.
type Supervisor struct {
	config  Config
	runners []*runner
}

// New checks the units.
func New(config Config, units []Unit) (*Supervisor, error) {
	if err := checkUnits(units); err != nil {
		return nil, err
	}
	s := &Supervisor{config: config}
	byName := make(map[string]*runner, len(units))
	for _, u := range units {
		r := newRunner(config, u)
		for _, name := range u.After {
			r.after = append(r.after, byName[name])
			byName[name].before = append(byName[name].before, r)
		}
		for _, name := range u.FirstAfter {
			r.firstAfter = append(r.firstAfter, byName[name])
			byName[name].before = append(byName[name].before, r)
		}
		byName[u.Name] = r
		s.runners = append(s.runners, r)
	}
	return s, nil
}

// Run adopts what runs, starts what is missing and keeps all running. When the context ends it stops every unit, those that others
// need last, and returns.
func (s *Supervisor) Run(ctx context.Context) error {
	for _, dir := range []string{s.config.Run, s.config.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("start the supervisor: %w", err)
		}
	}
	var wg sync.WaitGroup
	for _, r := range s.runners {
		wg.Go(func() { r.run(ctx) })
	}
	wg.Go(func() { housekeeping(ctx, s.config) })
	wg.Wait()
	return nil
}

// housekeeping keeps logs small and the process table clean.
func housekeeping(ctx context.Context, config Config) {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	var zombies reaper
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := rotateLogs(config.Logs); err != nil {
				config.Log.Error("cannot rotate logs", "error", err)
			}
			zombies.reap()
		}
	}
}

// processEnv is the unit's environment with its mark.
func (c Config) processEnv(u Unit) []string {
	return append(append([]string{}, u.Env...), c.markOf(u.Name))
}

func (c Config) markOf(unit string) string { return MarkVariable + "=" + c.Mark + ":" + unit }

// MarkPrefix is how the mark of any unit of a supervisor begins in the environment of a process.
func MarkPrefix(mark string) string { return MarkVariable + "=" + mark + ":" }

// openLog opens a log for appending: the process keeps writing at the end after the file was cut.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

// IsMarked tells whether a process carries the mark of a unit.
func IsMarked(pid int, mark, unit string) bool {
	return hasEnv(pid, MarkPrefix(mark)+unit)
}
