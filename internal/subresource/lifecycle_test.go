package subresource

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const (
	always  = "spec: {runStrategy: Always}"
	halted  = "spec: {runStrategy: Halted}"
	manual  = "spec: {runStrategy: Manual}"
	rerun   = "spec: {runStrategy: RerunOnFailure}"
	once    = "spec: {runStrategy: Once}"
	oldOn   = "spec: {running: true}"
	oldOff  = "spec: {running: false}"
	pending = "\nstatus: {stateChangeRequests: [{action: Start}]}"

	noVMI   = ""
	running = "metadata: {uid: u}\nspec: {terminationGracePeriodSeconds: 60}\nstatus: {phase: Running}"
	failed  = "metadata: {uid: u}\nstatus: {phase: Failed}"
	done    = "metadata: {uid: u}\nstatus: {phase: Succeeded}"
)

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	object := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
		t.Fatal(err)
	}
	return object
}

// written puts a change into one line: "run=true", "grace=1 Stop(u) Start(paused)".
func written(c change) string {
	var parts []string
	if c.run != nil {
		parts = append(parts, fmt.Sprintf("run=%t", *c.run))
	}
	if c.grace != nil {
		parts = append(parts, fmt.Sprintf("grace=%d", *c.grace))
	}
	for _, r := range c.requests {
		detail := ""
		if r.UID != nil {
			detail = "(" + string(*r.UID) + ")"
		}
		if r.Data["paused"] == "true" {
			detail = "(paused)"
		}
		parts = append(parts, string(r.Action)+detail)
	}
	return strings.Join(parts, " ")
}

// conflicted is the sentence that every 409 about a VM begins with.
func conflicted(text string) string {
	return `Operation cannot be fulfilled on virtualmachine.kubevirt.io "web": ` + text
}

type decision struct {
	vm, vmi string
	options string
	want    string // a change, or the text of an error
}

func checkDecisions[O any](t *testing.T, rows []decision, decide func(machine, O) (change, error)) {
	t.Helper()
	for _, row := range rows {
		t.Run(fmt.Sprintf("%s %s %s", row.vm, row.vmi, row.options), func(t *testing.T) {
			m := machine{vm: parse[virtv1.VirtualMachine](t, row.vm)}
			m.vm.Name = "web"
			if row.vmi != noVMI {
				m.vmi = parse[virtv1.VirtualMachineInstance](t, row.vmi)
			}
			c, err := decide(m, *parse[O](t, row.options))
			got := written(c)
			if err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestStart(t *testing.T) {
	checkDecisions(t, []decision{
		{halted, noVMI, "", "run=true"},
		{halted, done, "", "run=true"},
		{oldOff, noVMI, "", "run=true"},
		{halted, noVMI, "paused: true", "Start(paused)"},
		{halted, running, "", conflicted("VM is already running")},
		{always, running, "", conflicted("VM is already running")},
		{always, noVMI, "", conflicted("Always does not support manual start requests")},
		{oldOn, noVMI, "", conflicted("Always does not support manual start requests")},
		{once, noVMI, "", conflicted("Once does not support manual start requests")},
		{manual, noVMI, "", "Start"},
		{manual, noVMI, "paused: true", "Start(paused)"},
		{manual, done, "", "Stop(u) Start"},
		{manual, failed, "", "Stop(u) Start"},
		{rerun, noVMI, "", "Start"},
		{rerun, done, "", "Stop(u) Start"},
		{rerun, failed, "", conflicted("RerunOnFailure does not support starting VM from failed state")},
		{manual + pending, noVMI, "", conflicted("unable to complete request: stop/start already underway")},
	}, machine.start)
}

func TestStop(t *testing.T) {
	const shorter = "Halted only supports manual stop requests with a shorter graceperiod"
	checkDecisions(t, []decision{
		{always, running, "", "run=false"},
		{always, running, "gracePeriod: 5", "run=false grace=5"},
		{always, noVMI, "gracePeriod: 5", "run=false"},
		{oldOn, running, "", "run=false"},
		{once, running, "", "run=false"},
		{halted, noVMI, "", conflicted(shorter)},
		{halted, running, "", conflicted(shorter)},
		{halted, running, "gracePeriod: 60", conflicted(shorter)},
		{halted, running, "gracePeriod: 59", "grace=59"},
		{halted, "status: {phase: Running}", "gracePeriod: 29", "grace=29"},
		{manual, running, "", "Stop(u)"},
		{manual, running, "gracePeriod: 0", "grace=0 Stop(u)"},
		{manual, done, "", conflicted("VM is not running")},
		{rerun, noVMI, "", conflicted("VM is not running")},
		{manual + pending, running, "", "Stop(u)"},
	}, machine.stop)
}

func TestRestart(t *testing.T) {
	checkDecisions(t, []decision{
		{always, running, "", "Stop(u) Start"},
		{manual, running, "", "Stop(u) Start"},
		{rerun, running, "gracePeriodSeconds: 0", "grace=1 Stop(u) Start"},
		{always, running, "gracePeriodSeconds: 3", "For force restart, only gracePeriod=0 is supported for now"},
		{always, running, "gracePeriodSeconds: -1", "gracePeriod has to be greater or equal to 0"},
		{halted, running, "", conflicted("RunStategy Halted does not support manual restart requests")},
		{once, running, "", conflicted("RunStategy Once does not support manual restart requests")},
		{always, noVMI, "", conflicted("VM is not running: Halted")},
		{always + pending, running, "", conflicted("unable to complete request: stop/start already underway")},
	}, machine.restart)
}
