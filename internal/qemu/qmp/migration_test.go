package qmp_test

import (
	"path/filepath"
	"testing"

	"patchbay/internal/qemu/qmp"
)

func TestMigration(t *testing.T) {
	source := qmp.Machine{Monitor: dial(t, startQEMU(t))}
	target := qmp.Machine{Monitor: dial(t, startQEMU(t, "-incoming", "defer"))}
	status(t, target, "inmigrate")
	for _, m := range []qmp.Machine{source, target} {
		ok(t, m.SetMigrationCapabilities(t.Context(), map[string]bool{"events": true}))
	}
	ok(t, source.SetMigrationParameters(t.Context(), map[string]any{"max-bandwidth": 1 << 30, "downtime-limit": 100}))
	events := source.Subscribe()
	defer events.Close()
	uri := "unix:" + filepath.Join(t.TempDir(), "m")
	ok(t, target.MigrateIncoming(t.Context(), uri))
	ok(t, source.Migrate(t.Context(), uri))
	for state := ""; state != "completed"; {
		var data qmp.MigrationData
		ok(t, await(t, events, qmp.EventMigration).Decode(&data))
		if state = data.Status; state == "failed" {
			t.Fatal("the migration failed")
		}
	}
	got, err := source.Migration(t.Context())
	ok(t, err)
	if got.Status != "completed" || got.RAM.Total == 0 || got.RAM.Transferred == 0 {
		t.Errorf("the migration is %+v", got)
	}
	for state := ""; state != "postmigrate"; { // QEMU tidies up first
		now, err := source.Status(t.Context())
		ok(t, err)
		if state = now.State; state != "finish-migrate" && state != "postmigrate" {
			t.Fatalf("the source is %q", state)
		}
	}
	status(t, target, "running")
	ok(t, source.MigrateCancel(t.Context())) // of nothing
}
