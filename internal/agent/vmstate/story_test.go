package vmstate

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/golden"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qga"
	"patchbay/internal/qemu/qmp"
)

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// scene is one thing that happens in a story.
type scene struct {
	title  string
	change func(*Observed)
}

// at lets time pass.
func at(after time.Duration) scene {
	return scene{fmt.Sprintf("%s after the beginning", after), func(o *Observed) { o.Now = epoch.Add(after) }}
}

// Scenes that several stories share.
var (
	podReady = scene{"the pod is ready, the launcher waits", func(o *Observed) {
		o.VMI.Status.Phase, o.VMI.Status.NodeName = virtv1.Scheduled, o.Node
		o.Pod = Pod{Found: true, Phase: corev1.PodRunning, Connected: true}
		o.Launcher = Launcher{Reachable: true, State: protocol.Waiting}
	}}
	starting = scene{"the start is under way", func(o *Observed) { o.Busy = true }}
	running  = scene{"QEMU runs and its monitor is connected", func(o *Observed) {
		o.Busy = false
		o.Launcher.State = protocol.Running
		o.Domain = &Domain{RunState: "running", Machine: "pc-q35-7.2", NICs: []NIC{{
			Name: "default", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, PodInterface: "eth0", Queues: 1,
			IPs: []netip.Addr{netip.MustParseAddr("10.128.0.5"), netip.MustParseAddr("fd00:10:128::5")},
		}}}
	}}
	deleted  = scene{"somebody deletes the instance", func(o *Observed) { o.VMI.DeletionTimestamp = &metav1.Time{Time: o.Now} }}
	pressed  = scene{"the power button was pressed", func(o *Observed) { o.Domain.PowerButton = o.Now }}
	killed   = scene{"QEMU was told to end", func(o *Observed) { o.Domain.Killed = o.Now }}
	released = scene{"the launcher is gone", func(o *Observed) {
		o.Domain, o.Launcher = nil, Launcher{}
		o.Pod.Phase = corev1.PodSucceeded
	}}
)

func ended(e Ended) scene {
	return scene{fmt.Sprintf("QEMU ends: reason %q, exit code %d", e.Reason, e.ExitCode), func(o *Observed) {
		o.Domain, o.Ended = nil, &e
		o.Launcher = Launcher{Reachable: true, State: protocol.Exited}
	}}
}

func runState(state string) scene {
	return scene{"QEMU's run state is " + state, func(o *Observed) { o.Domain.RunState = state }}
}

func failure(f Failure) scene {
	return scene{"the start fails: " + f.Message, func(o *Observed) { o.Busy, o.Failure = false, &f }}
}

func TestStories(t *testing.T) {
	started := []scene{podReady, starting, running}
	tell := func(scenes ...scene) []scene { return append(started[:len(started):len(started)], scenes...) }
	guest := func(o *Observed) {
		o.Domain.Guest = &Guest{
			Interfaces: []qga.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", Addresses: []qga.Address{{IP: "10.0.2.2", Type: "ipv4", Prefix: 24}}}},
			OS:         qga.OS{ID: "debian", PrettyName: "Debian GNU/Linux 12"},
		}
	}
	stories := map[string][]scene{
		"life": tell(
			scene{"the guest agent answers", guest},
			ended(Ended{Reason: qmp.GuestShutdown}), released),
		"delete": tell(deleted, pressed, at(3*time.Second), at(10*time.Second), pressed, ended(Ended{Reason: qmp.GuestShutdown}), released),
		"deaf": tell(deleted, pressed, at(29*time.Second), pressed, at(30*time.Second), killed, at(31*time.Second), at(35*time.Second),
			ended(Ended{Reason: qmp.HostQuit}), released),
		"no grace": tell(scene{"the grace period is 0", func(o *Observed) { o.VMI.Spec.TerminationGracePeriodSeconds = new(int64) }}, deleted),
		"deaf without ACPI": tell(scene{"the guest has no ACPI", func(o *Observed) {
			o.VMI.Spec.Domain.Features = &virtv1.Features{ACPI: virtv1.FeatureState{Enabled: new(false)}}
		}}, ended(Ended{Reason: qmp.HostQuit})),
		"pod deleted": tell(scene{"somebody deletes the pod", func(o *Observed) { o.Pod.Deleting = o.Now }}),
		"panic":       tell(ended(Ended{Reason: qmp.GuestPanic})),
		"killed":      tell(ended(Ended{ExitCode: -9}), released),
		"unseen end":  tell(scene{"the agent was away; the pod has ended well", released.change}),
		"unseen kill": tell(scene{"the launcher saw QEMU die of a signal", func(o *Observed) {
			o.Domain, o.Launcher, o.Pod.Phase, o.Pod.ExitCode = nil, Launcher{}, corev1.PodFailed, 128+9
		}}),
		"unseen cut off": tell(scene{"the launcher cut the guest off", func(o *Observed) {
			o.Domain, o.Launcher, o.Pod.Phase, o.Pod.ExitCode = nil, Launcher{}, corev1.PodFailed, 143
		}}),
		"unseen crash": tell(scene{"the agent was away; the pod has failed", func(o *Observed) {
			o.Domain, o.Launcher, o.Pod.Phase = nil, Launcher{}, corev1.PodFailed
		}}),
		"agent restart": {{"a new agent finds a running guest", func(o *Observed) {
			podReady.change(o)
			o.VMI.Status.Phase = virtv1.Running
			o.Launcher.State = protocol.Running
		}}, starting, running},
		"agent restart while starting": {{"a new agent finds that QEMU was started", func(o *Observed) {
			podReady.change(o)
			o.Launcher.State = protocol.Running
		}}, running},
		"pause":                tell(runState("paused"), runState("running"), runState("io-error"), runState("finish-migrate")),
		"deleted while paused": tell(runState("paused"), deleted),
		"soft reboot": tell(scene{"a soft reboot is asked for", func(o *Observed) { o.Domain.Rebooting = o.Now }}, runState("shutdown"),
			scene{"the guest was reset", func(o *Observed) { o.Domain.Rebooting, o.Domain.RunState = time.Time{}, "running" }}),
		"access credentials": {podReady, starting, {"QEMU runs; users of the guest shall get SSH keys", func(o *Observed) {
			running.change(o)
			o.Domain.WantsAccess = true
		}}, {"the guest agent comes", guest},
			{"it knows no such user", func(o *Observed) { o.Domain.Access = &Access{Failure: `set the SSH keys of user "bob": no such user`} }},
			{"still not", func(o *Observed) { o.Domain.Access = &Access{Failure: `set the SSH keys of user "bob": no such user`} }},
			{"bob was made", func(o *Observed) { o.Domain.Access = &Access{} }},
			{"and is kept", func(o *Observed) { o.Domain.Access = &Access{} }},
			{"the guest reboots", func(o *Observed) { o.Domain.Guest, o.Domain.Access = nil, nil }},
			{"the guest agent comes back", guest}, {"keys are set again", func(o *Observed) { o.Domain.Access = &Access{} }},
			ended(Ended{Reason: qmp.GuestShutdown})},
		"link down": tell(scene{"the interface's link is to go down", func(o *Observed) {
			o.VMI.Spec.Domain.Devices.Interfaces[0].State = virtv1.InterfaceStateLinkDown
		}}, scene{"it is down", func(o *Observed) { o.Domain.NICs[0].LinkDown = true }}),
		"deaf to a soft reboot": tell(scene{"a soft reboot is asked for", func(o *Observed) { o.Domain.Rebooting = o.Now }}, at(5*time.Minute)),
		"network error": {podReady, starting, failure(Failure{Final: true, Message: "VM CIDR subnet is too small, at least 2 host addresses are required: 10.0.2.0/31"}),
			{"the launcher still waits", func(o *Observed) { o.Failure = nil }}, released},
		"try again": {podReady, failure(Failure{Message: "connect to launcher.sock", Retry: epoch.Add(time.Second)}), at(time.Second)},
		"not ready": {{"the pod's network is not recorded", func(o *Observed) {
			podReady.change(o)
			o.Pod.Connected = false
		}}, {"the launcher cannot be reached", func(o *Observed) { o.Pod.Connected, o.Launcher = true, Launcher{} }}},
		"deleted before start":   {podReady, deleted, released},
		"deleted while starting": {podReady, starting, deleted},
		"elsewhere":              {{"the instance runs on another node", func(o *Observed) { o.VMI.Status.Phase, o.VMI.Status.NodeName = virtv1.Running, "node-2" }}},
		"migrated away":          tell(runState("postmigrate"), scene{"the instance has moved", func(o *Observed) { o.VMI.Status.NodeName = "node-2" }}, killed, released),
		"agent commands": tell(scene{"an old guest agent answers", func(o *Observed) { o.Domain.Guest = &Guest{Missing: []string{"guest-get-osinfo"}} }},
			scene{"the guest agent is gone", func(o *Observed) { o.Domain.Guest = nil }}),
	}
	for name, scenes := range stories {
		t.Run(name, func(t *testing.T) {
			golden.Check(t, "txt", play(scenes))
		})
	}
}

// play tells a story: after each scene what Step wants, which the API takes over.
func play(scenes []scene) string {
	o := Observed{Now: epoch, Node: "node-1", VMI: &virtv1.VirtualMachineInstance{}}
	o.VMI.Spec.Networks = []virtv1.Network{*virtv1.DefaultPodNetwork()}
	o.VMI.Spec.Domain.Devices.Interfaces = []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}
	var b strings.Builder
	for _, scene := range scenes {
		fmt.Fprintf(&b, "> %s\n", scene.title)
		scene.change(&o)
		r := Step(o)
		write(&b, o, r)
		o.VMI.Status = r.Status
	}
	return b.String()
}

func write(b *strings.Builder, o Observed, r Result) {
	if r.Status.Phase != o.VMI.Status.Phase {
		fmt.Fprintf(b, "  phase %s\n", r.Status.Phase)
	}
	if diff := lines(conditions(o.VMI.Status), conditions(r.Status)); diff != "" {
		b.WriteString(diff)
	}
	if diff := lines(addressLines(o.VMI.Status), addressLines(r.Status)); diff != "" {
		b.WriteString(diff)
	}
	if r.Status.GuestOSInfo != o.VMI.Status.GuestOSInfo {
		fmt.Fprintf(b, "  guest OS %s\n", r.Status.GuestOSInfo.PrettyName)
	}
	for _, e := range r.Events {
		fmt.Fprintf(b, "  event %s %s: %s\n", e.Type, e.Reason, e.Message)
	}
	for _, a := range r.Actions {
		fmt.Fprintf(b, "  do: %s\n", a)
	}
	if !r.Wake.IsZero() {
		fmt.Fprintf(b, "  look again %s after the beginning\n", r.Wake.Sub(epoch))
	}
	if r.Done {
		b.WriteString("  done\n")
	}
}

func conditions(s virtv1.VirtualMachineInstanceStatus) []string {
	var all []string
	for _, c := range s.Conditions {
		all = append(all, strings.TrimSpace(fmt.Sprintf("condition %s=%s %s %s", c.Type, c.Status, c.Reason, c.Message)))
	}
	return all
}

func addressLines(s virtv1.VirtualMachineInstanceStatus) []string {
	var all []string
	for _, i := range s.Interfaces {
		all = append(all, fmt.Sprintf("interface %q (%s in the pod, %q in the guest) %s %s %s from %s", i.Name, i.PodInterfaceName, i.InterfaceName, i.LinkState, i.MAC, i.IPs, i.InfoSource))
	}
	return all
}

// lines are what went and what came.
func lines(before, after []string) string {
	var b strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			fmt.Fprintf(&b, "  - %s\n", line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			fmt.Fprintf(&b, "  + %s\n", line)
		}
	}
	return b.String()
}
