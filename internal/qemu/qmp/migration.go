package qmp

import "context"

// Migration is the progress of a live migration.
type Migration struct {
	Status    string `json:"status"`     // "" before the first, setup, active, device, completed, failed, cancelled, …
	TotalTime int64  `json:"total-time"` // ms
	Downtime  int64  `json:"downtime"`   // ms; expected until the end
	Error     string `json:"error-desc"`
	RAM       struct {
		Total       int64   `json:"total"`       // bytes
		Remaining   int64   `json:"remaining"`   // bytes
		Transferred int64   `json:"transferred"` // bytes
		MBps        float64 `json:"mbps"`        // Mbit/s
	} `json:"ram"`
}

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
