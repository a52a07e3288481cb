package virtctl

import (
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const running = "{phase: Running, nodeName: node-1, interfaces: [{name: default, ipAddress: 10.128.0.5}], conditions: [{type: Ready, status: 'True'}"

// step is a command and what it prints; ok says whether it succeeds.
type step struct {
	stdin, command string
	ok             bool
	want           string
}

func TestCommands(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"off", "late"} {
		w.vm(t, name, "Halted")
	}
	w.vm(t, "manual", "Manual")
	w.vm(t, "on", "Always")
	w.vmi(t, "on", running+", {type: AgentConnected, status: 'True'}]}")
	w.vmi(t, "paused", running+", {type: Paused, status: 'True'}]}")
	w.agent.Answers = map[string]string{
		"guestosinfo":    `{"guestAgentVersion":"7.2","hostname":"guest-name","os":{"name":"Debian GNU/Linux"}}`,
		"userlist":       `{"items":[{"userName":"alice","loginTime":1.5}]}`,
		"filesystemlist": `{"items":[{"diskName":"vda1","mountPoint":"/srv","fileSystemType":"ext4","usedBytes":1,"totalBytes":2,"disk":[]}]}`,
	}
	for _, s := range []step{
		{command: "version", ok: true, want: `GitVersion:"v1.9.0"`},
		{command: "start off", ok: true, want: "VM off was scheduled to start"},
		{command: "start off", want: `Operation cannot be fulfilled on virtualmachine.kubevirt.io "off": Always does not support manual start requests`},
		{command: "start nobody", want: `virtualmachine.kubevirt.io "nobody" not found`},
		{command: "start late --dry-run", ok: true, want: "VM late was scheduled to start"},
		{command: "start manual --paused", ok: true, want: "VM manual was scheduled to start"},
		{command: "stop late", want: "Halted only supports manual stop requests with a shorter graceperiod"},
		{command: "restart on", ok: true, want: "VM on was scheduled to restart"},
		{command: "restart late", want: "RunStategy Halted does not support manual restart requests"},
		{command: "stop on --force --grace-period=0", ok: true, want: "VM on was scheduled to stop"},
		{command: "migrate on", ok: true, want: "VM on was scheduled to migrate"},
		{command: "migrate late", want: "VM is not running"},
		{command: "pause vmi on", ok: true, want: "VMI on was scheduled to pause"},
		{command: "pause vmi paused", want: "VMI is already paused"},
		{command: "unpause vmi paused", ok: true, want: "VMI paused was scheduled to unpause"},
		{command: "unpause vmi on", want: "VMI is not paused"},
		{command: "soft-reboot on", ok: true, want: "on"},
		{command: "reset on", ok: true, want: "on"},
		{command: "guestosinfo on", ok: true, want: `"hostname": "guest-name"`},
		{command: "guestosinfo paused", want: "VMI does not have guest agent connected"},
		{command: "userlist on", ok: true, want: `"userName": "alice"`},
		{command: "fslist on", ok: true, want: `"mountPoint": "/srv"`},
		{stdin: "through the tunnel", command: "port-forward --stdio vmi/on 22", ok: true, want: "through the tunnel"},
		{stdin: "by the VM", command: "port-forward --stdio vm/on/default 22", ok: true, want: "by the VM"},
		{command: "port-forward --stdio vmi/paused 22", want: "VMI is paused"},
		{command: "port-forward --stdio vm/late 22", want: "VMI is not started"},
		{command: "expose vmi on --name on-svc --port 80", ok: true, want: "Service on-svc successfully"},
		{command: "expose vm off --name off-svc --port 22 --type NodePort", ok: true, want: "Service off-svc successfully"},
		{command: "evacuate-cancel vmi on", ok: true, want: "on"},
		{command: "migrate-cancel on", ok: true, want: "VM on was scheduled to migrate-cancel"},
	} {
		out, err := w.virtctl(s.stdin, s.command)
		if (err == nil) != s.ok || !strings.Contains(out, s.want) {
			t.Errorf("virtctl %s: error %v, want success %t and %q:\n%s", s.command, err, s.ok, s.want, out)
		}
	}
	w.checkRequests(t)
	w.checkCreated(t)
}

// checkRequests: what the commands asked for has reached the objects.
func (w *world) checkRequests(t *testing.T) {
	t.Helper()
	get := func(name string) *virtv1.VirtualMachine {
		vm := &virtv1.VirtualMachine{}
		must(t, w.controller.Get(w.ctx, client.ObjectKey{Namespace: "default", Name: name}, vm))
		return vm
	}
	if s := *get("off").Spec.RunStrategy; s != virtv1.RunStrategyAlways {
		t.Errorf("off: %s", s)
	}
	if s := *get("late").Spec.RunStrategy; s != virtv1.RunStrategyHalted {
		t.Errorf("late was started by a dry run: %s", s)
	}
	if r := get("manual").Status.StateChangeRequests; len(r) != 1 || r[0].Action != virtv1.StartRequest || r[0].Data["paused"] != "true" {
		t.Errorf("manual: requests %+v", r)
	}
	if on := get("on"); *on.Spec.RunStrategy != virtv1.RunStrategyHalted || len(on.Status.StateChangeRequests) != 2 {
		t.Errorf("on: %s with requests %+v", *on.Spec.RunStrategy, on.Status.StateChangeRequests)
	}
}

// checkCreated: what virtctl writes is taken without complaint.
func (w *world) checkCreated(t *testing.T) {
	t.Helper()
	manifest, err := w.virtctl("", "create vm --name made --memory 256Mi --volume-containerdisk src:patchbay.io/guest:latest --user cloud --ssh-key ssh-ed25519")
	if err != nil {
		t.Fatal(manifest)
	}
	_, problems, err := server.Kubectl(w.ctx, strings.NewReader(manifest), "create", "--validate=strict", "-f", "-")
	if err != nil || problems != "" {
		t.Errorf("%v: %s\n%s", err, problems, manifest)
	}
}
