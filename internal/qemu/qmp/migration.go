package qmp

import (
	"context"
	"os"
)

// Migration is the progress of a live migration.
type Migration struct {
	Status    string `json:"status"`            // "" before the first, setup, active, device, completed, failed, cancelled, …
	TotalTime int64  `json:"total-time"`        // ms
	Downtime  int64  `json:"downtime"`          // ms; not there until the end
	Expected  int64  `json:"expected-downtime"` // ms; while memory is sent
	Error     string `json:"error-desc"`
	RAM       struct {
		Total       int64   `json:"total"`       // bytes
		Remaining   int64   `json:"remaining"`   // bytes
		Transferred int64   `json:"transferred"` // bytes
		MBps        float64 `json:"mbps"`        // Mbit/s
		DirtyRate   int64   `json:"dirty-pages-rate"`
		PageSize    int64   `json:"page-size"` // bytes
		Passes      int64   `json:"dirty-sync-count"`
	} `json:"ram"`
	CPUThrottle int `json:"cpu-throttle-percentage"`
}

// States of a migration in which QEMU does nothing more by itself.
const (
	MigrationNone      = ""
	MigrationCompleted = "completed"
	MigrationFailed    = "failed"
	MigrationCancelled = "cancelled"
)

// States in which somebody must act, or may.
const (
	// MigrationSwitchover is QEMU waiting, with the guest stopped, for ContinueMigration (capability pause-before-switchover).
	MigrationSwitchover = "pre-switchover"
	MigrationPostCopy   = "postcopy-active"
	// MigrationPostCopyPaused is the connection lost while memory was still on its way to a guest that runs on the target.
	MigrationPostCopyPaused = "postcopy-paused"
	MigrationActive         = "active"
)

// Migration asks how the migration goes.
func (m Machine) Migration(ctx context.Context) (s Migration, err error) {
	err = m.Execute(ctx, Command{Name: "query-migrate"}, &s)
	return s, err
}

// SetMigrationCapabilities turns capabilities on or off (events, auto-converge, …).
func (m Machine) SetMigrationCapabilities(ctx context.Context, on map[string]bool) error {
	var list []map[string]any
	for name, state := range on {
		list = append(list, map[string]any{"capability": name, "state": state})
	}
	return m.do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": list})
}

// SetMigrationParameters sets parameters by QEMU's names (max-bandwidth, downtime-limit, …).
func (m Machine) SetMigrationParameters(ctx context.Context, parameters map[string]any) error {
	return m.do(ctx, "migrate-set-parameters", parameters)
}

// Migrate starts sending the guest to uri; MigrateIncoming starts receiving it; MigrateCancel gives up.
func (m Machine) Migrate(ctx context.Context, uri string) error {
	return m.do(ctx, "migrate", map[string]any{"uri": uri})
}

func (m Machine) MigrateIncoming(ctx context.Context, uri string) error {
	return m.do(ctx, "migrate-incoming", map[string]any{"uri": uri})
}

func (m Machine) MigrateCancel(ctx context.Context) error { return m.do(ctx, "migrate_cancel", nil) }

// ContinueMigration lets a migration go on that waits in a state.
func (m Machine) ContinueMigration(ctx context.Context, state string) error {
	return m.do(ctx, "migrate-continue", map[string]any{"state": state})
}

// StartPostCopy has the guest run on the target at once; its memory follows.
func (m Machine) StartPostCopy(ctx context.Context) error {
	return m.do(ctx, "migrate-start-postcopy", nil)
}

// Announce has the guest's network cards tell the network where they are.
func (m Machine) Announce(ctx context.Context) error {
	return m.do(ctx, "announce-self", map[string]any{"initial": 50, "max": 550, "rounds": 5, "step": 100})
}

// GiveFile hands QEMU an open file under a name, for the next command that names it.
func (m Machine) GiveFile(ctx context.Context, name string, file *os.File) error {
	return m.Execute(ctx, Command{Name: "getfd", Args: map[string]any{"fdname": name}, File: file}, nil)
}
