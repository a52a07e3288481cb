package migration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// slow lets a migration last until something happens to it.
const slow = "bandwidthPerMigration: 2Mi"

// patient is a machine that things happen to while it migrates.
type patient struct {
	guest
	talk  *talk
	guard *guard
}

// stays checks what every failure must leave: the guest runs on where it was, once, and its connection goes on.
func (p patient) stays(t *testing.T, on string) {
	t.Helper()
	p.talk.goesOn(t)
	if now := p.node(t); now != on {
		t.Errorf("%s was on %s and is on %s", p.name, on, now)
	}
	p.guard.alone(t, p.name)
}

// fails waits for the end of a migration.
func fails(t *testing.T, m *virtv1.VirtualMachineInstanceMigration, reason string) {
	t.Helper()
	reaches(t, m, virtv1.MigrationFailed)
	if got := reasonOf(m); !strings.Contains(got, reason) {
		t.Errorf("migration %s failed because %q, want %q", m.Name, got, reason)
	} else {
		t.Logf("migration %s failed: %s", m.Name, got)
	}
}

// struck lets something happen while the guest is on its way. The migration fails with a reason.
func (p patient) struck(t *testing.T, rules, reason string, what func(t *testing.T)) {
	t.Helper()
	on := p.node(t)
	p.rules(t, rules)
	m := p.move(t, nil)
	p.isOnTheWay(t, m)
	what(t)
	fails(t, m, reason)
	p.stays(t, on)
}

// isOnTheWay waits until a migration's memory or disks flow.
func (p patient) isOnTheWay(t *testing.T, m *virtv1.VirtualMachineInstanceMigration) {
	t.Helper()
	reaches(t, m, virtv1.MigrationRunning)
	waiter := p.guard.waiter(t, p.name)
	lab.Eventually(t, limit, "something of "+p.name+" flows", func() error {
		if p.guard.has(waiter.pid) {
			return nil
		}
		out, err := lab.Kubectl(t.Context(), "get", "--raw", fmt.Sprintf("/apis/subresources.kubevirt.io/v1/namespaces/%s/virtualmachineinstances/%s/migrationprogress", p.ns, p.name))
		if err == nil && (!strings.Contains(out, `"state":"active"`) || strings.Contains(out, `"transferredBytes":0,`)) {
			err = fmt.Errorf("it is at %s", out)
		}
		return err
	})
}

func kill(t *testing.T, pid int, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, signal); err != nil {
		t.Errorf("signal %v to process %d: %v", signal, pid, err)
	}
}

// TestFailures hurts migrations in every way. Each leaves one guest that runs, with its connections, and a reason.
func TestFailures(t *testing.T) {
	ns := newTenant(t)
	if err := small("node-2"); err != nil {
		t.Fatal(err)
	}
	w := watch(t, ns)
	kinds := map[string]map[string]string{"engine": inMemory, "late": live(inMemory), "wish": onDisk}
	for name, kind := range kinds {
		startMachine(t, ns, name, "node-1", kind)
	}
	all := map[string]patient{}
	for name := range kinds {
		g := started(t, ns, name)
		all[name] = patient{guest: g, talk: startTalk(t, g), guard: w}
	}
	configure(t, "4")
	t.Run("one machine", func(t *testing.T) {
		t.Run("processes of the target", func(t *testing.T) { t.Parallel(); all["engine"].processes(t) })
		t.Run("time is up", func(t *testing.T) { t.Parallel(); all["late"].timeouts(t) })
		t.Run("it is not wanted", func(t *testing.T) { t.Parallel(); all["wish"].unwanted(t) })
	})
	configure(t, "150")
	d := disaster{ns: ns, guard: w, patients: all}
	t.Run("the source's agent is killed", d.sourceAgent)
	t.Run("the target's agent is killed", func(t *testing.T) {
		d.strikes(t, "agent", func(t *testing.T) { lab.Kill(t, limit, "node-2/agent") })
	})
	t.Run("the nodes are cut off from each other", d.cutOff)
	t.Run("the target's disk is full", func(t *testing.T) { all["wish"].diskFull(t) })
	t.Run("they can still move", d.recover)
	t.Run("the source's QEMU is killed", func(t *testing.T) { all["engine"].sourceDies(t) })
}

// processes kills what waits for the guest.
func (p patient) processes(t *testing.T) {
	t.Run("QEMU", func(t *testing.T) {
		p.struck(t, slow, "QEMU on the target node ended", func(t *testing.T) { kill(t, p.guard.waiter(t, p.name).pid, syscall.SIGKILL) })
	})
	t.Run("launcher", func(t *testing.T) {
		p.struck(t, slow, "QEMU on the target node ended", func(t *testing.T) { kill(t, p.guard.waiter(t, p.name).launcher, syscall.SIGKILL) })
	})
}

// timeouts are those of the configuration and of the machine's policy.
func (p patient) timeouts(t *testing.T) {
	t.Run("completion", func(t *testing.T) {
		p.struck(t, slow+"\n  completionTimeoutPerGiB: 2", "Live migration is not completed after 2 sec and has been aborted", func(*testing.T) {})
	})
	t.Run("progress", func(t *testing.T) {
		p.struck(t, slow, "Live migration stuck for 4 sec and has been aborted", func(t *testing.T) {
			kill(t, p.guard.waiter(t, p.name).pid, syscall.SIGSTOP) // it takes nothing any more
		})
	})
	t.Run("completion, and the guest was held", func(t *testing.T) {
		p.struck(t, slow+"\n  "+holding, "Live migration is not completed after 10 sec and has been aborted", p.isHeld)
	})
}

// holding lets a migration stop the guest when its time is up.
const holding = "allowWorkloadDisruption: true\n  completionTimeoutPerGiB: 5"

// isHeld waits until a migration has stopped the guest.
func (p patient) isHeld(t *testing.T) {
	t.Helper()
	lab.Eventually(t, limit, p.name+" is held", func() error {
		vmi, err := p.instance(t.Context())
		if err != nil {
			return err
		}
		for _, c := range vmi.Status.Conditions {
			if c.Type == virtv1.VirtualMachineInstancePaused && c.Reason == "PausedByMigrationMonitor" && vmi.Status.MigrationState.Mode == virtv1.MigrationPaused {
				return nil
			}
		}
		return fmt.Errorf("state %+v", vmi.Status.MigrationState)
	})
}

// unwanted migrations find no node, or are cancelled.
func (p patient) unwanted(t *testing.T) {
	on := p.node(t)
	nowhere := map[string]string{"kubernetes.io/hostname": "nowhere"}
	t.Run("no node fits", func(t *testing.T) {
		m := p.move(t, nowhere, virtv1.MigrationUnschedulablePodTimeoutSecondsAnnotation, "1")
		fails(t, m, "fits on no node")
		p.stays(t, on)
	})
	t.Run("cancelled before it begins", func(t *testing.T) {
		m := p.move(t, nowhere)
		reaches(t, m, virtv1.MigrationScheduling)
		p.cancel(t, m)
		p.stays(t, on)
	})
	t.Run("cancelled on its way", func(t *testing.T) {
		p.rules(t, slow)
		m := p.move(t, nil)
		p.isOnTheWay(t, m)
		p.cancel(t, m)
		vmi, err := p.instance(t.Context())
		if ms := vmi.Status.MigrationState; err != nil || ms.MigrationUID != m.UID || !ms.Failed || ms.AbortStatus != virtv1.MigrationAbortSucceeded {
			t.Errorf("%v, state %+v", err, ms)
		}
		p.stays(t, on)
	})
}

// cancel deletes a migration, which is gone when it has ended.
func (p patient) cancel(t *testing.T, m *virtv1.VirtualMachineInstanceMigration) {
	t.Helper()
	if err := lab.Client.Delete(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, limit, "the cancelled migration is gone", func() error {
		err := lab.Client.Get(t.Context(), client.ObjectKeyFromObject(m), m)
		if client.IgnoreNotFound(err) == nil && err != nil {
			return nil
		}
		return fmt.Errorf("phase %s, %v", m.Status.Phase, err)
	})
}
