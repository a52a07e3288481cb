package vmctl

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Progress is how far a migration is.
type Progress struct {
	Migration string `json:"migration"` // name of the object
	Phase     string `json:"phase"`
	Source    string `json:"source,omitempty"`
	Target    string `json:"target,omitempty"`
	Failure   string `json:"failure,omitempty"`
	// The rest is known while memory is sent.
	TotalBytes           int64 `json:"totalBytes,omitempty"`
	RemainingBytes       int64 `json:"remainingBytes,omitempty"`
	TransferredBytes     int64 `json:"transferredBytes,omitempty"`
	BitsPerSecond        int64 `json:"bitsPerSecond,omitempty"`
	DowntimeMilliseconds int64 `json:"downtimeMilliseconds,omitempty"` // expected
}

// Over says that nothing more will happen, and whether it went well.
func (p Progress) Over() (over, well bool) {
	switch virtv1.VirtualMachineInstanceMigrationPhase(p.Phase) {
	case virtv1.MigrationSucceeded:
		return true, true
	case virtv1.MigrationFailed:
		return true, false
	}
	return false, false
}

// Migrate asks for a VM's migration, to a node with the labels if there are any, and returns the migration's name.
func (c *Client) Migrate(ctx context.Context, m Name, nodeLabels map[string]string) (string, error) {
	if _, err := c.vmi(ctx, m); err != nil {
		return "", err
	}
	before, err := c.migrations(ctx, m)
	if err != nil {
		return "", err
	}
	if err := c.put(ctx, machines, m, "migrate", virtv1.MigrateOptions{AddedNodeSelector: nodeLabels}); err != nil {
		return "", err
	}
	name := ""
	err = await(ctx, func(ctx context.Context) (bool, error) {
		now, err := c.migrations(ctx, m)
		for _, migration := range now {
			if !slices.ContainsFunc(before, func(old virtv1.VirtualMachineInstanceMigration) bool { return old.UID == migration.UID }) {
				name = migration.Name
			}
		}
		return name != "", err
	})
	return name, err
}

// CancelMigration ends the migration of a VM that is under way.
func (c *Client) CancelMigration(ctx context.Context, m Name) error {
	all, err := c.migrations(ctx, m)
	if err != nil {
		return err
	}
	for _, migration := range all {
		if !migration.IsFinal() {
			return client.IgnoreNotFound(c.api.Delete(ctx, &migration))
		}
	}
	return fmt.Errorf("no migration of virtual machine %s is under way", m.Name)
}

func (c *Client) migrations(ctx context.Context, m Name) ([]virtv1.VirtualMachineInstanceMigration, error) {
	var list virtv1.VirtualMachineInstanceMigrationList
	if err := c.api.List(ctx, &list, client.InNamespace(m.Namespace)); err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	return slices.DeleteFunc(list.Items, func(o virtv1.VirtualMachineInstanceMigration) bool { return o.Spec.VMIName != m.Name }), nil
}

// FollowMigration reports how a migration goes until it is over.
func (c *Client) FollowMigration(ctx context.Context, m Name, migration string, report func(Progress)) (last Progress, err error) {
	err = await(ctx, func(ctx context.Context) (bool, error) {
		if last, err = c.progress(ctx, m, migration); err != nil {
			return false, err
		}
		report(last)
		over, _ := last.Over()
		return over, nil
	})
	return last, err
}

// askPatience is how long the node may take to say how the migration goes.
const askPatience = 2 * time.Second

func (c *Client) progress(ctx context.Context, m Name, migration string) (Progress, error) {
	object := &virtv1.VirtualMachineInstanceMigration{}
	err := c.api.Get(ctx, client.ObjectKey{Namespace: m.Namespace, Name: migration}, object)
	if apierrors.IsNotFound(err) {
		return Progress{}, fmt.Errorf("migration %s was deleted: it is cancelled", migration)
	}
	if err != nil {
		return Progress{}, err
	}
	p := Progress{Migration: migration, Phase: string(object.Status.Phase)}
	state := object.Status.MigrationState
	if state == nil { // which it gets at the end; until then the instance has it
		if vmi, err := c.vmi(ctx, m); err == nil && vmi.Status.MigrationState != nil && vmi.Status.MigrationState.MigrationUID == object.UID {
			state = vmi.Status.MigrationState
		}
	}
	if state != nil {
		p.Source, p.Target, p.Failure = state.SourceNode, state.TargetNode, state.FailureReason
	}
	if object.Status.Phase == virtv1.MigrationRunning {
		c.addMemory(ctx, m, &p)
	}
	return p, nil
}

// addMemory asks the source's node. It may be unable to answer at the very moment when the guest moves.
func (c *Client) addMemory(ctx context.Context, m Name, p *Progress) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	memory := *p
	if c.get(ctx, instances, m, "migrationprogress", &memory) == nil {
		*p = memory
	}
}

// Age is how long ago an object was made.
func (m Machine) Age(now time.Time) time.Duration { return now.Sub(metav1.NewTime(m.Created).Time) }
