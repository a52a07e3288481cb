package migration

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
)

// disaster strikes a node, and with it all machines that leave it or come to it. Each is at another point of its migration then.
type disaster struct {
	ns       string
	guard    *guard
	patients map[string]patient
}

// begin has all machines migrate by a rule, and waits until they are on their way.
func (d disaster) begin(t *testing.T, rules string) map[string]*virtv1.VirtualMachineInstanceMigration {
	t.Helper()
	begun := map[string]*virtv1.VirtualMachineInstanceMigration{}
	for name, p := range d.patients {
		p.rules(t, rules)
		begun[name] = p.move(t, nil)
	}
	for name, p := range d.patients {
		p.isOnTheWay(t, begun[name])
	}
	return begun
}

// strikes lets something happen to all machines on their way. All of them stay.
func (d disaster) strikes(t *testing.T, reason string, what func(t *testing.T)) {
	t.Helper()
	begun := d.begin(t, slow)
	what(t)
	d.over(t, begun, reason)
}

func (d disaster) over(t *testing.T, begun map[string]*virtv1.VirtualMachineInstanceMigration, reason string) {
	t.Helper()
	for _, m := range begun {
		fails(t, m, reason)
	}
	for _, p := range d.patients {
		p.stays(t, "node-1")
	}
}

// sourceAgent is killed while some guests are on their way and one is held: nobody but the next agent can let it go.
func (d disaster) sourceAgent(t *testing.T) {
	late := d.patients["late"]
	others := maps.Clone(d.patients)
	delete(others, "late")
	begun := disaster{ns: d.ns, guard: d.guard, patients: others}.begin(t, slow)
	late.rules(t, slow+"\n  "+holding)
	begun["late"] = late.move(t, nil)
	late.isHeld(t)
	lab.Kill(t, limit, "node-1/agent")
	d.over(t, begun, "agent")
}

// isolate cuts the nodes off from each other, or joins them again. Both reach the control plane all the time.
func isolate(t *testing.T, how string) {
	t.Helper()
	for _, port := range []string{"node1", "node2"} {
		if out, err := lab.InNode(t.Context(), "fabric", "bridge", "link", "set", "dev", port, "isolated", how); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
}

// cutOff cuts before the migrations begin, and in the middle of them.
func (d disaster) cutOff(t *testing.T) {
	some := maps.Clone(d.patients)
	delete(some, "late")
	on := disaster{ns: d.ns, guard: d.guard, patients: some}.begin(t, slow)
	defer isolate(t, "off")
	isolate(t, "on")
	before := d.patients["late"].move(t, nil)
	d.over(t, on, "agent")
	d.over(t, map[string]*virtv1.VirtualMachineInstanceMigration{"late": before}, "connect to node node-2 for the migration")
}

// diskFull leaves no room on the target for what the guest has written.
func (p patient) diskFull(t *testing.T) {
	lab.Guest(t, p.ns, p.name).Run("dd if=/dev/urandom of=/root/written bs=1M count=16 2>/dev/null; sync")
	fill(t, "node-2", func() {
		p.rules(t, "bandwidthPerMigration: 64Mi")
		m := p.move(t, nil)
		fails(t, m, "is the target node's disk full?")
		p.stays(t, "node-1")
	})
}

// recover moves the machines that stand still for it: nothing is left of what has happened to them, and they run again over there.
func (d disaster) recover(t *testing.T) {
	begun := map[string]*virtv1.VirtualMachineInstanceMigration{}
	for _, name := range []string{"engine", "wish"} {
		d.patients[name].rules(t, "allowPostCopy: true") // which none needs that stands still
		begun[name] = d.patients[name].move(t, nil)
	}
	for name, m := range begun {
		reaches(t, m, virtv1.MigrationSucceeded)
		d.patients[name].stays(t, "node-2")
		if mode := m.Status.MigrationState.Mode; mode != virtv1.MigrationPaused {
			t.Errorf("migration %s was %s, want %s", m.Name, mode, virtv1.MigrationPaused)
		}
		vmi := lab.Running(t, d.ns, name)
		for _, c := range vmi.Status.Conditions {
			if c.Type == virtv1.VirtualMachineInstancePaused {
				t.Errorf("%s is paused: %s", name, c.Reason)
			}
		}
	}
}

// sourceDies takes the guest, as any crash does. The run strategy brings another.
func (p patient) sourceDies(t *testing.T) {
	before := lab.Running(t, p.ns, p.name)
	p.rules(t, slow)
	m := p.move(t, nil)
	p.isOnTheWay(t, m)
	kill(t, p.guard.runner(t, p.name).pid, syscall.SIGKILL)
	fails(t, m, "ended")
	p.replaced(t, before)
	startTalk(t, p.guest).goesOn(t) // at the address that is the machine's own
	p.guard.alone(t, p.name)
}

// podsDisk is what the disk of a node is that pods have their local data on.
func podsDisk(node string) string {
	return filepath.Join(lab.Dir(), "nodes", node, "kubelet", "pods")
}

// small puts the pods' data of a node on a disk of its own, before there are pods.
func small(node string) error {
	script := fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs -o size=1g tmpfs %[1]s", podsDisk(node))
	out, err := inMounts(node, script)
	if err != nil {
		return fmt.Errorf("give the pods of %s a disk: %w %s", node, err, out)
	}
	return nil
}

func inMounts(node, script string) (string, error) {
	out, err := exec.Command("nsenter", "--mount="+filepath.Join(lab.Dir(), "run", "mnt", node), "sh", "-c", script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// fill leaves a few megabytes of a node's disk while something happens.
func fill(t *testing.T, node string, what func()) {
	t.Helper()
	file := filepath.Join(podsDisk(node), "filler")
	if out, err := inMounts(node, fmt.Sprintf("set -e; free=$(df -k --output=avail %s | tail -1); fallocate -l $((free - 4096))K %s", podsDisk(node), file)); err != nil {
		t.Fatalf("fill the disk of %s: %v %s", node, err, out)
	}
	defer func() {
		if out, err := inMounts(node, "rm "+file); err != nil && !os.IsNotExist(err) {
			t.Errorf("%v %s", err, out)
		}
	}()
	what()
}
