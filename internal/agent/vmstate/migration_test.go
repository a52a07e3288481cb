package vmstate

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qmp"
)

// side is one of the two nodes: its agent, which may be killed, and its QEMU, which lives without it.
type side struct {
	node, pod string
	qemu      string // "": not started, "over": it ended, else its run state
	attached  bool
	sending   *Sending
	receiving *Receiving
	loaded    bool   // QEMU has the guest
	memory    string // QEMU's word for how far it is
	aborting  bool
	view      *virtv1.VirtualMachineInstance // what the agent's cache has
}

// duo is a migration with both its ends, the API server between them and every failure that there is.
type duo struct {
	source, target side
	vmi            *virtv1.VirtualMachineInstance
	version        int
	versions       map[*virtv1.VirtualMachineInstance]int
	gave, held     bool // the durable notes
	now            time.Time
	story          []string
}

func newDuo() *duo {
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}
	vmi.Status.Phase, vmi.Status.NodeName = virtv1.Running, "node-1"
	vmi.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{
		MigrationUID: "move", SourceNode: "node-1", SourcePod: "web-1", TargetNode: "node-2", TargetPod: "web-2",
	}
	return &duo{
		source: side{node: "node-1", pod: "web-1", qemu: "running", attached: true, view: vmi}, target: side{node: "node-2", pod: "web-2", view: vmi},
		vmi: vmi, versions: map[*virtv1.VirtualMachineInstance]int{vmi: 0}, now: epoch,
	}
}

func (d *duo) other(s *side) *side {
	if s == &d.source {
		return &d.target
	}
	return &d.source
}

// turn is one turn of an agent, on what its cache has.
func (d *duo) turn(s *side) {
	o := Observed{Now: d.now, Node: s.node, VMI: s.view, Pod: Pod{Found: true, Name: s.pod, Phase: corev1.PodRunning, Connected: true}}
	switch {
	case s.qemu == "over":
		o.Pod.Phase = corev1.PodSucceeded
		s.attached = false
	case s.attached:
		o.Domain = &Domain{RunState: s.qemu, Memory: s.memory, NICs: []NIC{{Name: "default"}}}
	case s.qemu == "":
		o.Launcher = Launcher{Reachable: true, State: protocol.Waiting}
	default:
		o.Launcher = Launcher{Reachable: true, State: protocol.Running}
	}
	if s.sending != nil {
		o.Sending = new(*s.sending)
	}
	if s.receiving != nil {
		s.receiving.Loaded = s.loaded && s.qemu != "over"
		o.Receiving = new(*s.receiving)
	}
	if d.gave && s == &d.source {
		o.GaveAway = "move"
	}
	o.Held = d.held && s == &d.source
	o.PeerOver = d.other(s).qemu == "over"
	r := Step(o)
	written := s.view.DeepCopy()
	written.Status = r.Status
	if !equality.Semantic.DeepEqual(written.Status, s.view.Status) && d.versions[s.view] == d.version { // else a conflict
		d.version++
		d.vmi, s.view = written, written
		d.versions[written] = d.version
	}
	for _, a := range r.Actions {
		d.act(s, a)
	}
}

func (d *duo) act(s *side, a Action) {
	switch a {
	case Attach:
		s.attached = s.qemu != "over"
	case Kill:
		s.qemu, s.attached = "over", false
	case Send:
		d.letGo() // what an agent that was killed has left
		s.sending = &Sending{Migration: "move", Mode: virtv1.MigrationPreCopy}
	case AbortSend:
		s.aborting = true
	case ForgetSend:
		s.sending = nil
	case Continue:
		s.qemu, d.held = "running", false
	case Receive:
		s.receiving = &Receiving{Migration: "move", Address: "172.30.0.12", Ports: map[string]int{"1": 0}}
	case TakeOver:
		d.run(s)
	case ForgetReceive:
		s.receiving = nil
	case Release:
		s.sending, s.receiving = nil, nil
	}
}

// hold stops the guest because time is up.
func (d *duo) hold() {
	if s := d.source.sending; s != nil && !s.Over && d.source.qemu == "running" && d.target.qemu == "inmigrate" {
		d.held, d.source.qemu = true, "paused"
	}
}

func (d *duo) letGo() {
	if d.held && !d.gave && d.source.qemu == "paused" {
		d.source.qemu = "running"
	}
	d.held = false
}

// postCopy has the guest run on the target before its memory is there.
func (d *duo) postCopy() {
	if s := d.source.sending; s != nil && !s.Over && d.source.qemu == "running" && d.target.qemu == "inmigrate" {
		d.source.qemu, d.target.qemu, d.target.memory = "postmigrate", "paused", qmp.MigrationPostCopy
	}
}

// follow brings the memory after the guest.
func (d *duo) follow() {
	if d.target.memory == qmp.MigrationPostCopy && d.gave {
		d.target.memory, d.target.loaded = qmp.MigrationCompleted, true
	}
}

// tear breaks the streams.
func (d *duo) tear() {
	if d.target.memory == qmp.MigrationPostCopy {
		d.target.memory = qmp.MigrationPostCopyPaused
	}
}

func (d *duo) run(s *side) {
	if (s.loaded || s.memory != "") && s.qemu != "over" {
		s.qemu = "running"
		s.receiving.Taken, s.receiving.TakenAt = true, d.now
	}
}

// send is what the sender's goroutine does next.
func (d *duo) send() {
	s, t := d.source.sending, &d.target
	if s == nil || s.Over {
		return
	}
	fail := func(reason string) {
		s.Over, s.Failure = true, reason
		d.letGo()
	}
	stopped := d.source.qemu == "postmigrate"
	switch {
	case d.gave && t.receiving == nil:
		return // the target's agent is away; it is told again
	case d.gave:
		d.run(t)
		s.Over = t.receiving.Taken && t.memory != qmp.MigrationPostCopy
	case d.source.aborting:
		s.Aborted = true
		fail("cancelled")
	case t.receiving == nil || t.qemu == "over" || d.source.qemu == "over":
		fail("lost")
	case t.qemu == "":
		t.qemu, t.attached = "inmigrate", true
	case !t.loaded && t.qemu == "inmigrate" && !stopped:
		d.source.qemu, t.qemu, t.loaded = "postmigrate", "paused", true
	case (t.loaded || t.memory == qmp.MigrationPostCopy) && stopped:
		d.gave, d.held = true, false
	default:
		fail("this migration has begun before")
	}
}

// killAgent ends an agent: streams that went through it break, and a QEMU that was receiving ends with them.
func (d *duo) killAgent(s *side) {
	s.sending, s.receiving, s.attached, s.aborting = nil, nil, false, false
	d.tear()
	if d.target.qemu == "inmigrate" && !d.target.loaded {
		d.target.qemu = "over"
	}
	if s == &d.target && d.source.sending != nil && !d.gave {
		d.source.sending.Over, d.source.sending.Failure = true, "the other node's agent was lost"
	}
}

func (d *duo) see(s *side) { s.view = d.vmi }

// event is something that happens.
type event struct {
	name string
	do   func(*duo)
}

// events are what can happen; the last ones are failures.
var events = []event{
	{"source's turn", func(d *duo) { d.turn(&d.source) }},
	{"target's turn", func(d *duo) { d.turn(&d.target) }},
	{"source sees the object", func(d *duo) { d.see(&d.source) }},
	{"target sees the object", func(d *duo) { d.see(&d.target) }},
	{"sender goes on", (*duo).send},
	{"memory follows", (*duo).follow},
	{"time", func(d *duo) { d.now = d.now.Add(3 * time.Second) }},
	{"source's agent is killed", func(d *duo) { d.killAgent(&d.source) }},
	{"target's agent is killed", func(d *duo) { d.killAgent(&d.target) }},
	{"sender holds the guest", (*duo).hold},
	{"sender begins post-copy", (*duo).postCopy},
	{"source's QEMU dies", func(d *duo) { d.source.qemu, d.source.attached = "over", false; d.tear() }},
	{"target's QEMU dies", func(d *duo) {
		if d.target.qemu != "" {
			d.target.qemu, d.target.attached = "over", false
		}
	}},
	{"abort", func(d *duo) {
		if ms := d.vmi.Status.MigrationState; !ms.Completed {
			d.vmi = d.vmi.DeepCopy()
			d.vmi.Status.MigrationState.AbortRequested = true
			d.version++
			d.versions[d.vmi] = d.version
		}
	}},
}

const firstFailure = 7

// TestOneGuestRuns lets everything happen in any order. At no moment may both guests run, and when the failures end one of them runs, or
// the instance is said to have failed because the only QEMU that could is dead.
func TestOneGuestRuns(t *testing.T) {
	ends := map[string]int{}
	for seed := range uint64(3000) {
		chance := rand.New(rand.NewPCG(seed, 7))
		d := newDuo()
		for range 60 {
			n := chance.IntN(firstFailure)
			if chance.IntN(15) == 0 {
				n = firstFailure + chance.IntN(len(events)-firstFailure)
			}
			d.happen(t, seed, n)
		}
		d.calm(t, seed)
		ends[d.end(t, seed)]++
	}
	for _, end := range []string{"moved", "stayed", "died", "torn"} {
		if ends[end] == 0 {
			t.Errorf("no story ended with %q: %v", end, ends)
		}
	}
}

// calm has no more failures, and everybody sees everything.
func (d *duo) calm(t *testing.T, seed uint64) {
	for range 40 {
		for _, n := range []int{2, 3, 0, 1, 4, 5, 6} {
			d.happen(t, seed, n)
		}
	}
}

// TestOrders replays what was seen to happen to real guests.
func TestOrders(t *testing.T) {
	const sent = "target's turn, target's turn, source sees the object, source's turn, source's turn, sender goes on"
	for _, c := range []struct{ name, end, story string }{
		{"nothing happens", "moved", sent},
		{"the source's agent is killed while the guest is held", "stayed", sent + ", sender holds the guest, source's agent is killed"},
		{"the target's QEMU dies while the guest is held", "stayed", sent + ", sender holds the guest, target's QEMU dies"},
		{"the held guest is taken along", "moved", sent + ", sender holds the guest, sender goes on, sender goes on"},
		{"the source's agent is killed when QEMU has sent everything", "stayed", sent + ", sender goes on, source's agent is killed"},
		{"the source's agent is killed when it has given the guest away", "moved", sent + ", sender goes on, sender goes on, source's agent is killed"},
		{"post-copy", "moved", sent + ", sender begins post-copy, sender goes on, sender goes on, target's turn, source sees the object, source's turn"},
		{"post-copy is cut before the guest runs on the target", "stayed", sent + ", sender begins post-copy, source's agent is killed"},
		{"the target's agent is killed during post-copy", "torn", sent + ", sender begins post-copy, sender goes on, sender goes on, target's agent is killed"},
		{"the source's agent is killed during post-copy", "torn", sent + ", sender begins post-copy, sender goes on, sender goes on, source's agent is killed"},
		{"the source's QEMU dies during post-copy", "torn", sent + ", sender begins post-copy, sender goes on, sender goes on, source's QEMU dies"},
		{"the target's QEMU dies during post-copy", "died", sent + ", sender begins post-copy, sender goes on, sender goes on, target's QEMU dies"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDuo()
			for _, what := range strings.Split(c.story, ", ") {
				n := slices.IndexFunc(events, func(e event) bool { return e.name == what })
				if n < 0 {
					t.Fatalf("nothing is called %q", what)
				}
				d.happen(t, 0, n)
			}
			d.calm(t, 0)
			if end := d.end(t, 0); end != c.end {
				t.Errorf("it %s, want it to have %s", end, c.end)
			}
		})
	}
}

func (d *duo) happen(t *testing.T, seed uint64, n int) {
	d.story = append(d.story, events[n].name)
	events[n].do(d)
	if d.source.qemu == "running" && d.target.qemu == "running" {
		t.Fatalf("seed %d: both guests run after\n%s", seed, strings.Join(d.story, "\n"))
	}
}

func (d *duo) end(t *testing.T, seed uint64) string {
	status := d.vmi.Status
	switch {
	case d.vmi.IsFinal() && status.MigrationState.FailureReason == reasonTorn:
		return "torn"
	case d.source.qemu == "running" && status.NodeName == "node-1" && (status.MigrationState.Failed || d.waits()):
		return "stayed"
	case d.target.qemu == "running" && d.target.loaded && status.NodeName == "node-2" && status.MigrationState.Completed && !status.MigrationState.Failed:
		return "moved"
	case d.target.qemu != "running" && d.source.qemu != "running" && (d.vmi.IsFinal() || slices.Contains([]string{d.source.qemu, d.target.qemu}, "over")):
		return "died"
	}
	t.Fatalf("seed %d: source %q, target %q, instance on %s %s with %+v after\n%s", seed, d.source.qemu, d.target.qemu, status.NodeName, status.Phase,
		status.MigrationState, strings.Join(d.story, "\n"))
	return ""
}

// waits says that the controller has the next word: a target that ended before the source began.
func (d *duo) waits() bool { return d.vmi.Status.MigrationState.StartTimestamp == nil }
