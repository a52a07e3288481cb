package vmdriver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/types"

	"patchbay/internal/qemu/qmp"
)

// gift is the note that a guest was given away to another node, or is held still for a migration. It must outlive the agent, and not the
// QEMU: with the node, QEMU is gone too.
type gift struct {
	Migration types.UID `json:"migration,omitempty"`
	Running   bool      `json:"running,omitempty"`
	// Held is the migration that has stopped the guest in order to come to an end; empty: none has.
	Held types.UID `json:"held,omitempty"`
}

func (d *Driver) giftFile(vmi types.UID) string {
	return filepath.Join(d.StateDir, filepath.Base(string(vmi))+".json")
}

// note writes the note.
func (d *Driver) note(vmi types.UID, g gift) error {
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.StateDir, 0o700); err != nil {
		return fmt.Errorf("note that the guest moves: %w", err)
	}
	// The guest stands still meanwhile, so nobody waits for the disk: what is written outlives every process of this node, and a node that
	// loses power loses QEMU too.
	next := d.giftFile(vmi) + ".next"
	err = os.WriteFile(next, text, 0o600)
	if err == nil {
		err = os.Rename(next, d.giftFile(vmi))
	}
	if err != nil {
		return fmt.Errorf("note that the guest moves: %w", err)
	}
	return nil
}

// gift reads the note; it is empty when there is none.
func (d *Driver) gift(vmi types.UID) gift {
	var g gift
	text, err := os.ReadFile(d.giftFile(vmi))
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Log.Error("cannot read the note of a migration", "vmi", vmi, "error", err)
	}
	return g
}

// letGo lets a guest run again that a migration has stopped.
func (d *Driver) letGo(ctx context.Context, vmi types.UID, m qmp.Machine) error {
	if d.gift(vmi).Held == "" {
		return nil
	}
	if err := m.Resume(ctx); err != nil {
		return err
	}
	return d.note(vmi, gift{})
}

// forgetGift removes the note when the instance is not this node's any more.
func (d *Driver) forgetGift(vmi types.UID) {
	if err := os.Remove(d.giftFile(vmi)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.Log.Warn("cannot remove the note of a migration", "vmi", vmi, "error", err)
	}
}
