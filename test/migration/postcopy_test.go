package migration

import (
	"fmt"
	"syscall"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
)

// Rules of a guest that changes its memory faster than it can be copied: soon it runs on the target without most of it.
const (
	follow     = "bandwidthPerMigration: 16Mi\n  " + early
	followSlow = slow + "\n  " + early
	early      = "allowPostCopy: true\n  completionTimeoutPerGiB: 2"
)

// TestPostCopy moves a guest whose memory follows it, and loses one whose memory cannot any more.
func TestPostCopy(t *testing.T) {
	ns := newTenant(t)
	w := watch(t, ns)
	startMachine(t, ns, "busy", "node-1", live(inMemory))
	g := started(t, ns, "busy")
	p := patient{guest: g, talk: startTalk(t, g), guard: w}
	if t.Run("memory follows", p.memoryFollows) {
		t.Run("memory is lost", p.memoryIsLost)
	}
}

// memoryFollows moves a guest that never stops changing its memory.
func (p patient) memoryFollows(t *testing.T) {
	shell := lab.Guest(t, p.ns, p.name)
	const look = "cat /proc/sys/kernel/random/boot_id; md5sum </tmp/kept"
	shell.Run("head -c 33554432 /dev/urandom >/tmp/kept")
	before := shell.Run(look)
	shell.Run("(while :; do head -c 41943040 /dev/zero >/tmp/changes; done) >/dev/null 2>&1 </dev/null &")
	on := p.node(t)
	p.rules(t, follow)
	m := p.move(t, nil)
	reaches(t, m, virtv1.MigrationSucceeded)
	if mode := m.Status.MigrationState.Mode; mode != virtv1.MigrationPostCopy {
		t.Errorf("migration %s was %s, want %s", m.Name, mode, virtv1.MigrationPostCopy)
	}
	if now := p.node(t); now == on {
		t.Errorf("the guest is still on %s", now)
	}
	p.talk.goesOn(t)
	p.guard.alone(t, p.name)
	if now := lab.Guest(t, p.ns, p.name).Run(look); now != before {
		t.Errorf("the guest had\n%s\nand has\n%s", before, now)
	}
}

// memoryIsLost kills the source's QEMU while memory that is only there has still to follow. The guest is lost, and the run strategy brings
// another.
func (p patient) memoryIsLost(t *testing.T) {
	before, source := lab.Running(t, p.ns, p.name), p.guard.runner(t, p.name)
	p.rules(t, followSlow)
	m := p.move(t, nil)
	lab.Eventually(t, limit, "the guest runs on the target", func() error {
		vmi, err := p.instance(t.Context())
		if err != nil {
			return err
		}
		runner, ms := p.guard.runner(t, p.name), vmi.Status.MigrationState
		if runner.pid == source.pid || ms.Mode != virtv1.MigrationPostCopy || ms.Completed {
			return fmt.Errorf("process %d runs it, state %+v", runner.pid, ms)
		}
		return nil
	})
	kill(t, source.pid, syscall.SIGKILL)
	fails(t, m, "the connection broke after the guest had begun to run on the target node")
	p.replaced(t, before)
	p.guard.alone(t, p.name)
}

// replaced waits until another instance runs in the place of one that was lost.
func (p patient) replaced(t *testing.T, lost *virtv1.VirtualMachineInstance) {
	t.Helper()
	lab.Eventually(t, limit, "another guest runs", func() error {
		vmi, err := p.instance(t.Context())
		if err == nil && (vmi.UID == lost.UID || vmi.Status.Phase != virtv1.Running) {
			err = fmt.Errorf("phase %s", vmi.Status.Phase)
		}
		return err
	})
}
