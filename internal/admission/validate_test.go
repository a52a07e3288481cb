package admission

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	migrationsv1 "kubevirt.io/api/migrations/v1alpha1"
	"sigs.k8s.io/yaml"
)

const (
	alice      Requester = "alice"
	controller Requester = ControllerUser
	agent1     Requester = "patchbay:agent:node-1"
	agent2     Requester = "patchbay:agent:node-2"
)

func parse[T any](t *testing.T, text string) *T {
	t.Helper()
	object := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
		t.Fatal(err)
	}
	return object
}

func compare(t *testing.T, want []string, got Causes) {
	t.Helper()
	if diff := cmp.Diff(want, texts(got)); diff != "" {
		t.Errorf("causes (-want +got):\n%s", diff)
	}
}

func TestValidateVM(t *testing.T) {
	for _, tc := range []struct {
		name, spec string
		update     bool
		want       []string
	}{
		{name: "strategy", spec: "runStrategy: Once\ntemplate: {spec: {domain: {devices: {}}}}"},
		{name: "running", spec: "running: false\ntemplate: {spec: {domain: {devices: {}}}}"},
		{name: "template needs no memory", spec: "runStrategy: Always\ntemplate: {spec: {domain: {devices: {}}}}"},
		{name: "both", spec: "running: true\nrunStrategy: Always\ntemplate: {spec: {domain: {devices: {}}}}", want: []string{
			"FieldValueInvalid spec.running: Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead"}},
		{name: "neither", spec: "template: {spec: {domain: {devices: {}}}}",
			want: []string{"FieldValueInvalid spec.running: RunStrategy must be specified"}},
		{name: "bad strategy", spec: "runStrategy: Sometimes\ntemplate: {spec: {domain: {devices: {}}}}",
			want: []string{"FieldValueInvalid spec.runStrategy: Invalid RunStrategy (Sometimes)"}},
		{name: "no template", spec: "runStrategy: Always",
			want: []string{"FieldValueRequired spec.template: missing virtual machine template."}},
		{name: "paths of the template", spec: "runStrategy: Always\ntemplate: {spec: {domain: {devices: {}}, networks: [{name: a, pod: {}}]}}", want: []string{
			"FieldValueRequired spec.template.spec.networks[0].name: spec.template.spec.networks[0].name 'a' not found."}},
		{name: "retired binding on creation", spec: "runStrategy: Always\ntemplate: {spec: " + slirp + "}", want: []string{
			"FieldValueInvalid spec.template.spec.domain.devices.interfaces[0].slirp: Slirp interface support has been discontinued since v1.3"}},
		{name: "retired binding on update", update: true, spec: "runStrategy: Always\ntemplate: {spec: " + slirp + "}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			vm := parse[virtv1.VirtualMachine](t, "spec:\n"+indent(tc.spec))
			var old *virtv1.VirtualMachine
			if tc.update {
				old = vm
			}
			compare(t, tc.want, ValidateVM(old, vm, DefaultPolicy()))
		})
	}
}

const slirp = "{domain: {devices: {interfaces: [{name: a, bridge: {}, slirp: {}}]}}, networks: [{name: a, pod: {}}]}"

func TestValidateVMI(t *testing.T) {
	for _, tc := range []struct {
		name, vmi string
		by        Requester
		want      []string
	}{
		{name: "guest memory", by: alice, vmi: "spec: {domain: {memory: {guest: 64Mi}, devices: {}}}"},
		{name: "requested memory", by: alice, vmi: "spec: {domain: {resources: {requests: {memory: 64Mi}}, devices: {}}}"},
		{name: "no memory", by: alice, vmi: "spec: {domain: {devices: {}}}", want: []string{
			"FieldValueRequired : no memory requested, at least one of 'spec.domain.memory.guest', 'spec.domain.memory.hugepages.size' or 'spec.domain.resources.requests.memory' must be set"}},
		{name: "reserved label", by: alice, vmi: "metadata: {labels: {kubevirt.io/nodeName: x}}\nspec: {domain: {memory: {guest: 64Mi}, devices: {}}}", want: []string{
			"FieldValueNotSupported metadata.labels: creation of the following reserved kubevirt.io/ labels on a VMI object is prohibited"}},
		{name: "reserved label of the controller", by: controller, vmi: "metadata: {labels: {kubevirt.io/created-by: x}}\nspec: {domain: {memory: {guest: 64Mi}, devices: {}}}"},
		{name: "other label of the domain", by: alice, vmi: "metadata: {labels: {kubevirt.io/vm: x}}\nspec: {domain: {memory: {guest: 64Mi}, devices: {}}}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			compare(t, tc.want, ValidateVMI(parse[virtv1.VirtualMachineInstance](t, tc.vmi), tc.by, DefaultPolicy()))
		})
	}
}

func TestValidateVMIUpdate(t *testing.T) {
	const stored = `
metadata: {labels: {app: web, kubevirt.io/nodeName: node-1}}
spec: {domain: {memory: {guest: 64Mi}, devices: {}}}
status: {nodeName: node-1, phase: Running}`
	const moving = `
spec: {domain: {devices: {}}}
status: {nodeName: node-1, migrationState: {targetNode: node-2}}`
	for _, tc := range []struct {
		name, old string
		change    func(*virtv1.VirtualMachineInstance)
		by        Requester
		want      []string
	}{
		{name: "user labels", old: stored, by: alice, change: func(v *virtv1.VirtualMachineInstance) { v.Labels["app"] = "db" }},
		{name: "user spec", old: stored, by: alice, change: func(v *virtv1.VirtualMachineInstance) { v.Spec.Hostname = "x" },
			want: []string{"FieldValueNotSupported : update of VMI object is restricted"}},
		{name: "user reserved label", old: stored, by: alice, change: func(v *virtv1.VirtualMachineInstance) { delete(v.Labels, virtv1.NodeNameLabel) }, want: []string{
			"FieldValueNotSupported metadata.labels: modification of the following reserved kubevirt.io/ labels on a VMI object is prohibited"}},
		{name: "controller spec", old: stored, by: controller, change: func(v *virtv1.VirtualMachineInstance) { v.Spec.Hostname = "x" }},
		{name: "own agent", old: stored, by: agent1, change: func(v *virtv1.VirtualMachineInstance) { v.Status.Phase = virtv1.Failed }},
		{name: "other agent", old: stored, by: agent2, change: func(v *virtv1.VirtualMachineInstance) { v.Status.Phase = virtv1.Failed },
			want: []string{"FieldValueNotSupported : Node restriction, virt-handler is only allowed to modify VMIs it owns"}},
		{name: "agent of the target", old: moving, by: agent2, change: func(v *virtv1.VirtualMachineInstance) { v.Status.MigrationState.TargetNodeAddress = "172.30.0.12" }},
		{name: "agent chooses a target", old: stored, by: agent1,
			change: func(v *virtv1.VirtualMachineInstance) {
				v.Status.MigrationState = &virtv1.VirtualMachineInstanceMigrationState{TargetNode: "node-2"}
			},
			want: []string{"FieldValueNotSupported : Node restriction, virt-handler is not allowed to set the target of a migration"}},
		{name: "agent hands over to the target", old: moving, by: agent1, change: func(v *virtv1.VirtualMachineInstance) { v.Status.NodeName = "node-2" }},
		{name: "agent hands over to another", old: moving, by: agent1, change: func(v *virtv1.VirtualMachineInstance) { v.Status.NodeName = "node-3" }, want: []string{
			"FieldValueNotSupported : Node restriction, virt-handler is not allowed to move a VMI to a node that is not the target of its migration"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old := parse[virtv1.VirtualMachineInstance](t, tc.old)
			changed := old.DeepCopy()
			tc.change(changed)
			compare(t, tc.want, ValidateVMIUpdate(old, changed, tc.by))
		})
	}
}

func TestKeepStatus(t *testing.T) {
	old := parse[virtv1.VirtualMachineInstance](t, "status: {phase: Running, nodeName: node-1}")
	for by, want := range map[Requester]virtv1.VirtualMachineInstancePhase{
		alice: virtv1.Running, controller: virtv1.Failed, agent1: virtv1.Failed, "patchbay:agent:": virtv1.Running,
	} {
		changed := parse[virtv1.VirtualMachineInstance](t, "status: {phase: Failed}")
		if KeepStatus(old, changed, by); changed.Status.Phase != want {
			t.Errorf("%s: phase %s, want %s", by, changed.Status.Phase, want)
		}
	}
}

func TestValidateMigration(t *testing.T) {
	running := parse[virtv1.VirtualMachineInstance](t, "status: {phase: Running}")
	stuck := parse[virtv1.VirtualMachineInstance](t, "status: {phase: Running, conditions: [{type: LiveMigratable, status: 'False', reason: DisksNotLiveMigratable, message: not shared}]}")
	busy := []virtv1.VirtualMachineInstanceMigration{*parse[virtv1.VirtualMachineInstanceMigration](t, "metadata: {uid: u1}\nspec: {vmiName: web}\nstatus: {phase: Running}")}
	done := []virtv1.VirtualMachineInstanceMigration{*parse[virtv1.VirtualMachineInstanceMigration](t, "spec: {vmiName: web}\nstatus: {phase: Succeeded}")}
	for _, tc := range []struct {
		name, spec string
		in         MigrationContext
		by         Requester
		off        []string
		want       []string
	}{
		{name: "accepted", spec: "{vmiName: web}", in: MigrationContext{VMI: running, Others: done}},
		{name: "no name", spec: "{}", want: []string{"FieldValueRequired spec.vmiName: vmiName is missing"}},
		{name: "no VMI", spec: "{vmiName: web}", want: []string{`FieldValueNotSupported : the VMI "shop/web" does not exist`}},
		{name: "final VMI", spec: "{vmiName: web}", in: MigrationContext{VMI: parse[virtv1.VirtualMachineInstance](t, "status: {phase: Succeeded}")},
			want: []string{"FieldValueNotSupported : Cannot migrate VMI in finalized state."}},
		{name: "not migratable", spec: "{vmiName: web}", in: MigrationContext{VMI: stuck},
			want: []string{"FieldValueNotSupported : Cannot migrate VMI, Reason: DisksNotLiveMigratable, Message: not shared"}},
		{name: "to another cluster", spec: "{vmiName: web, sendTo: {migrationID: m, connectURL: x}}", in: MigrationContext{VMI: stuck}},
		{name: "in flight", spec: "{vmiName: web}", in: MigrationContext{VMI: running, Others: busy}, want: []string{
			"FieldValueNotSupported : in-flight migration detected. Active migration job (u1) is currently already in progress for VMI web."}},
		{name: "priority of a user", by: alice, spec: "{vmiName: web, priority: user-triggered}", in: MigrationContext{VMI: running}, want: []string{
			"FieldValueInvalid spec.priority: Migration priority queue, only virt-controller is allowed to set priority field"}},
		{name: "priority of the controller", by: controller, spec: "{vmiName: web, priority: user-triggered}", in: MigrationContext{VMI: running}},
		{name: "gate", off: []string{GateDecentralizedLiveMigration}, spec: "{vmiName: web, receive: {migrationID: m}}",
			want: []string{"FieldValueInvalid spec: DecentralizedLiveMigration feature gate is not enabled"}},
		{name: "identifiers", spec: "{vmiName: web, sendTo: {migrationID: m, connectURL: x}, receive: {migrationID: other}}",
			want: []string{"FieldValueInvalid spec: sendTo migrationID m does not match receive migrationID other"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := parse[virtv1.VirtualMachineInstanceMigration](t, "metadata: {namespace: shop}\nspec: "+tc.spec)
			policy := DefaultPolicy()
			policy.Gates = gates(nil, tc.off)
			compare(t, tc.want, ValidateMigration(m, tc.in, tc.by, policy))
		})
	}
}

func TestValidateMigrationUpdate(t *testing.T) {
	const stored = "metadata: {labels: {kubevirt.io/vmi-name: web}}\nspec: {vmiName: web}\nstatus: {phase: %s}"
	for _, tc := range []struct {
		name, phase string
		change      func(*virtv1.VirtualMachineInstanceMigration)
		want        []string
	}{
		{name: "annotation", phase: "Running", change: func(m *virtv1.VirtualMachineInstanceMigration) { m.Annotations = map[string]string{"a": "b"} }},
		{name: "spec", phase: "Running", change: func(m *virtv1.VirtualMachineInstanceMigration) { m.Spec.VMIName = "x" },
			want: []string{"FieldValueNotSupported : update of Migration object's spec is restricted"}},
		{name: "removed", phase: "Running", change: func(m *virtv1.VirtualMachineInstanceMigration) { m.Labels = nil },
			want: []string{"FieldValueNotSupported : selector label can't be removed from an in-flight migration"}},
		{name: "modified", phase: "Running", change: func(m *virtv1.VirtualMachineInstanceMigration) {
			m.Labels = map[string]string{virtv1.MigrationSelectorLabel: "x"}
		}, want: []string{"FieldValueNotSupported : selector label can't be modified on an in-flight migration"}},
		{name: "removed at the end", phase: "Failed", change: func(m *virtv1.VirtualMachineInstanceMigration) { m.Labels = nil }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old := parse[virtv1.VirtualMachineInstanceMigration](t, replacePhase(stored, tc.phase))
			changed := old.DeepCopy()
			tc.change(changed)
			compare(t, tc.want, ValidateMigrationUpdate(old, changed))
		})
	}
}

func TestValidateMigrationPolicy(t *testing.T) {
	p := parse[migrationsv1.MigrationPolicy](t, "spec: {completionTimeoutPerGiB: -1, bandwidthPerMigration: '-1'}")
	compare(t, []string{
		"FieldValueInvalid spec.completionTimeoutPerGiB: must not be negative",
		"FieldValueInvalid spec.bandwidthPerMigration: must not be negative",
	}, ValidateMigrationPolicy(p))
	compare(t, nil, ValidateMigrationPolicy(parse[migrationsv1.MigrationPolicy](t, "spec: {completionTimeoutPerGiB: 0}")))
}

func TestStatusIsCapped(t *testing.T) {
	var c Causes
	for range 12 {
		c.invalid(nil, "bad")
	}
	s := c.Status()
	if want := "bad, bad, bad, bad, bad, bad, bad, bad, bad, bad, and 2 more validation errors"; s.Message != want {
		t.Errorf("message %q, want %q", s.Message, want)
	}
	if s.Code != 422 || s.Reason != metav1.StatusReasonInvalid || len(s.Details.Causes) != 10 {
		t.Errorf("code %d reason %s with %d causes, want 422 Invalid with 10", s.Code, s.Reason, len(s.Details.Causes))
	}
	if s := c[:2].Status(); s.Message != "bad, bad" {
		t.Errorf("message of two causes: %q", s.Message)
	}
}
