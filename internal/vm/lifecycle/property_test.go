package lifecycle

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"
)

// TestNothingTwice lets much happen at random while the controllers are killed between actions and look at old copies of the
// objects. However it goes, an instance gets one pod, a machine has one pod at a time, and a deleted machine leaves nothing.
func TestNothingTwice(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			c := &chaos{t: t, w: newWorld(), rand: rand.New(rand.NewPCG(seed, 1))}
			c.must("create", `{"runStrategy":"`+c.strategy()+`"}`)
			for range 150 {
				c.disturb()
				c.step()
				c.check()
			}
			c.drain()
		})
	}
}

type chaos struct {
	t      *testing.T
	w      *world
	rand   *rand.Rand
	cached struct { // what the informers have
		vm   VMView
		vmi  VMIView
		none bool
	}
}

func (c *chaos) strategy() string {
	all := []string{"Always", "Halted", "Manual", "RerunOnFailure", "Once"}
	return all[c.rand.IntN(len(all))]
}

func (c *chaos) must(args ...string) {
	c.t.Helper()
	c.w.log = append(c.w.log, "> "+strings.Join(args, " "))
	if err := c.w.happen(args); err != nil {
		c.t.Fatalf("%v\n%s", err, strings.Join(c.w.log, "\n"))
	}
}

// disturb makes one thing happen that can happen now.
func (c *chaos) disturb() {
	w := c.w
	var can [][]string
	add := func(args ...string) { can = append(can, args) }
	add("wait", "7s")
	if w.vm != nil && w.vm.DeletionTimestamp == nil {
		add("edit", `{"runStrategy":"`+c.strategy()+`"}`)
		add("request", "start")
	}
	if w.vmi != nil {
		add("delete", "vmi")
		if w.vm != nil {
			add("request", "stop")
			add("request", "restart")
		}
		switch w.vmi.Status.Phase {
		case virtv1.Scheduled:
			add("agent", "running")
			add("agent", "running")
		case virtv1.Running:
			add("agent", "succeeded")
			add("agent", "failed")
		}
	}
	for _, pod := range w.pods {
		switch {
		case pod.DeletionTimestamp != nil:
			add("pod", "gone")
			add("pod", "gone")
		case pod.Spec.NodeName == "":
			add("pod", "bound", "node-1")
		case pod.Status.Phase == corev1.PodPending:
			add("pod", "running")
			add("pod", "running")
		case pod.Status.Phase == corev1.PodRunning:
			add("pod", "failed")
			add("delete", "pod")
		}
	}
	c.must(can[c.rand.IntN(len(can))]...)
}

// step runs one of the controllers on its cache, which is refreshed now and then, and ends it after some actions.
func (c *chaos) step() {
	w := c.w
	if c.rand.IntN(3) > 0 || c.cached.vm.Now.IsZero() {
		c.refresh()
	}
	limit := -1
	if c.rand.IntN(3) == 0 {
		limit = c.rand.IntN(4)
	}
	if c.rand.IntN(2) == 0 {
		d := StepVM(c.cached.vm)
		if d.Confirm {
			d = StepVM(w.vmView())
		}
		w.run("vm:", d, limit, nil)
		return
	}
	if c.cached.none {
		return
	}
	d := StepVMI(c.cached.vmi)
	if d.Confirm {
		if w.vmi == nil || w.vmi.UID != c.cached.vmi.VMI.UID {
			return
		}
		d = StepVMI(w.vmiView())
	}
	w.run("vmi:", d, limit, nil)
}

func (c *chaos) refresh() {
	c.cached.vm = c.w.vmView()
	c.cached.none = c.w.vmi == nil
	if !c.cached.none {
		c.cached.vmi = c.w.vmiView()
	}
}

func (c *chaos) check() {
	c.t.Helper()
	owners := map[types.UID]bool{}
	for _, pod := range c.w.pods {
		owners[pod.OwnerReferences[0].UID] = true
	}
	if len(c.w.pods) > 1 || len(owners) > 1 {
		c.t.Fatalf("%d pods at once:\n%s", len(c.w.pods), strings.Join(c.w.log, "\n"))
	}
	for uid, n := range c.w.podsMade {
		if n > 1 && !c.remade(uid) {
			c.t.Fatalf("%d pods for instance %s:\n%s", n, uid, strings.Join(c.w.log, "\n"))
		}
	}
}

// remade says whether the instance may have had a second pod: only one that never left Pending may, because its first pod was
// lost together with the note of it.
func (c *chaos) remade(uid types.UID) bool {
	return c.w.vmi != nil && c.w.vmi.UID == uid && (c.w.vmi.Status.Phase == virtv1.Pending || c.w.vmi.Status.Phase == virtv1.Scheduling)
}

// drain deletes the machine and lets kubelets do their work: nothing may be left.
func (c *chaos) drain() {
	w := c.w
	if w.vm != nil {
		c.must("delete", "vm")
	} else if w.vmi != nil {
		c.must("delete", "vmi")
	}
	for range 10 {
		w.settle(c.t, -1)
		if len(w.pods) > 0 {
			c.must("pod", "gone")
		}
		w.now = w.now.Add(time.Minute)
	}
	if w.vm != nil || w.vmi != nil || len(w.pods) != 0 {
		c.t.Fatalf("vm %v, vmi %v, %d pods are left:\n%s", w.vm != nil, w.vmi != nil, len(w.pods), strings.Join(w.log, "\n"))
	}
}
