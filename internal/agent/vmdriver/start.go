package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/credentials"
	"patchbay/internal/agent/guestnet"
	"patchbay/internal/agent/migration"
	"patchbay/internal/agent/podnet"
	"patchbay/internal/agent/vmstate"
	"patchbay/internal/launcher/client"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu"
	"patchbay/internal/qemu/qga"
	"patchbay/internal/qemu/qmp"
)

// takeUp is the task of taking up a machine. It runs beside the machine's loop and shares nothing with it.
type takeUp struct {
	driver *Driver
	log    *slog.Logger
	vmi    *virtv1.VirtualMachineInstance
	pod    types.UID
	accel  qemu.Accelerator // that the pod was given
	// arrives is the running guest that QEMU is started for, on the target of a migration; nil: it boots.
	arrives *migration.Hello
}

// start joins the NICs, has the launcher start QEMU with them, and attaches.
func (t takeUp) start(ctx context.Context) (*domain, error) {
	return t.run(ctx, t.launch)
}

// attach takes up a guest that runs. No failure of it is final: the guest does not depend on this agent.
func (t takeUp) attach(ctx context.Context) (*domain, error) {
	d, err := t.run(ctx, t.takeOver)
	if err != nil {
		return nil, NotYet(err)
	}
	return d, nil
}

// bringUp is what makes a domain in a pod's run directory.
type bringUp func(ctx context.Context, dir *client.RunDir, pod podnet.Pod, dns guestnet.DNS) (*domain, error)

// run prepares what every way to a domain needs. Nothing is held when it fails.
func (t takeUp) run(ctx context.Context, bring bringUp) (_ *domain, err error) {
	pod, ok := t.driver.Pods.Get(t.pod)
	if !ok {
		return nil, fmt.Errorf("the network of pod %s is not recorded", t.pod)
	}
	dir, err := client.Open(t.driver.runDir(t.pod))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
		}
	}()
	dns, err := podDNS(ctx, dir, t.vmi.Spec.Subdomain)
	if err != nil {
		return nil, err
	}
	return bring(ctx, dir, pod, dns)
}

// launch joins every NIC, starts QEMU with them and connects to its monitor.
func (t takeUp) launch(ctx context.Context, dir *client.RunDir, pod podnet.Pod, dns guestnet.DNS) (_ *domain, err error) {
	all, err := t.driver.join(ctx, t.vmi, pod, dns, Wirer.Open)
	if err != nil {
		return nil, networkError(err)
	}
	defer func() {
		if err != nil {
			all.discard()
		}
	}()
	machineType, err := t.startQEMU(ctx, dir, all)
	if err != nil {
		return nil, err
	}
	monitor, err := dialMonitor(ctx, dir)
	if err != nil {
		return nil, err
	}
	return t.connect(ctx, dir, monitor, all, machineType)
}

// takeOver connects to the monitor of a QEMU that runs and takes up the NICs that it has: what an earlier agent was about to plug or
// unplug is decided anew, later.
func (t takeUp) takeOver(ctx context.Context, dir *client.RunDir, pod podnet.Pod, dns guestnet.DNS) (_ *domain, err error) {
	monitor, err := dialMonitor(ctx, dir)
	if err != nil {
		return nil, err
	}
	var all cards
	defer func() {
		if err != nil {
			all.discard()
			monitor.Close()
		}
	}()
	has, err := plugged(ctx, monitor)
	if err != nil {
		return nil, err
	}
	vmi := t.vmi.DeepCopy()
	for n, i := range vmi.Spec.Domain.Devices.Interfaces {
		if !has[i.Name] {
			vmi.Spec.Domain.Devices.Interfaces[n].State = virtv1.InterfaceStateAbsent
		}
	}
	if all, err = t.driver.join(ctx, vmi, pod, dns, Wirer.Refresh); err != nil {
		return nil, networkError(err)
	}
	for n := range all {
		all[n].VMI = t.vmi
	}
	all = append(all, leaving(t.vmi, pod, dns, has)...)
	return t.connect(ctx, dir, monitor, all, "")
}

// leaving are the NICs that the guest has and is to lose. Their networks may be gone already, so they are not taken up.
func leaving(vmi *virtv1.VirtualMachineInstance, pod podnet.Pod, dns guestnet.DNS, has map[string]bool) (all cards) {
	for _, i := range vmi.Spec.Domain.Devices.Interfaces {
		if i.State != virtv1.InterfaceStateAbsent || !has[i.Name] {
			continue
		}
		if nic, err := newNIC(vmi, i, pod, dns); err == nil {
			all = append(all, card{NIC: nic, Wired: &Wired{MAC: nic.MAC}})
		}
	}
	for name := range has {
		if !slices.ContainsFunc(vmi.Spec.Domain.Devices.Interfaces, func(i virtv1.Interface) bool { return i.Name == name }) {
			all = append(all, card{NIC: NIC{VMI: vmi, Interface: virtv1.Interface{Name: name}, Pod: pod}, Wired: &Wired{}})
		}
	}
	return all
}

func dialMonitor(ctx context.Context, dir *client.RunDir) (qmp.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, actLimit)
	defer cancel()
	conn, err := dir.Dial(ctx, protocol.QMPName)
	if err != nil {
		return qmp.Machine{}, err
	}
	monitor, err := qmp.New(ctx, conn)
	if err != nil {
		return qmp.Machine{}, err
	}
	return qmp.Machine{Monitor: monitor}, nil
}

// networkError tells critical errors of the pod's network from those that pass. A machine whose network cannot be set up must
// not be tried again and again behind the user's back.
func networkError(err error) error {
	var later *notYet
	var known *finalError
	if errors.As(err, &later) || errors.As(err, &known) || errors.Is(err, context.Canceled) {
		return err
	}
	return final(fmt.Errorf("set up the pod's network for the guest: %w", err))
}

// startQEMU has the launcher start QEMU, and tells the machine type.
func (t takeUp) startQEMU(ctx context.Context, dir *client.RunDir, all cards) (string, error) {
	if t.accel == qemu.KVM {
		all.openVhost(t.driver.OpenVhost)
	}
	plan, err := t.plan(ctx, all)
	if err != nil {
		return "", err
	}
	_, files := all.plan()
	if device := t.openUserFault(); device != nil {
		defer device.Close()
		plan.UserFault, files = new(len(files)), append(files, device)
	}
	_, err = dir.Start(ctx, plan, files)
	for _, c := range all {
		c.closeFiles() // QEMU has its own
	}
	var refused *client.Refusal
	if errors.As(err, &refused) {
		return "", final(err)
	}
	return machineTypeOf(plan.Args), err
}

// openUserFault opens the device through which QEMU fetches memory that a guest misses, on the target of a migration that may come to that.
// Without it the migration goes on without post-copy.
func (t takeUp) openUserFault() *os.File {
	if t.arrives == nil || !t.arrives.PostCopy || t.driver.UserFault == "" {
		return nil
	}
	device, err := os.OpenFile(t.driver.UserFault, os.O_RDWR, 0)
	if err != nil {
		t.log.Info("post-copy is allowed, but this node's kernel lacks what it needs; Linux has it since 6.1", "error", err)
		return nil
	}
	return device
}

// plan is what the launcher is told.
func (t takeUp) plan(ctx context.Context, all cards) (protocol.Start, error) {
	claims, err := t.driver.claims(ctx, t.vmi)
	if err != nil {
		return protocol.Start{}, err
	}
	keys, err := credentials.ForSeed(t.vmi.Spec.AccessCredentials, t.driver.secrets(t.pod))
	if err != nil {
		return protocol.Start{}, err
	}
	nics, _ := all.plan()
	facts := qemu.Facts{Accelerator: t.accel, NICs: nics, Claims: claims, PublicKeys: keys, EFI: t.driver.EFI, Now: time.Now()}
	if t.arrives != nil {
		facts.Incoming, facts.Ports, facts.Seed = true, t.arrives.Ports, t.arrives.Seed
		for i := range nics {
			nics[i].Port = t.arrives.NICs[nics[i].Name]
		}
	}
	plan, err := qemu.Plan(t.vmi, facts)
	if err != nil {
		return protocol.Start{}, final(err)
	}
	plan.Passt = all.passt()
	return plan, nil
}

// connect attaches to the guest agent's channel. The monitor is closed when it fails.
func (t takeUp) connect(ctx context.Context, dir *client.RunDir, machine qmp.Machine, all cards, machineType string) (*domain, error) {
	limited, cancelLimit := context.WithTimeout(ctx, actLimit)
	defer cancelLimit()
	status, err := machine.Status(limited)
	if err != nil {
		machine.Close()
		return nil, err
	}
	agent, err := dir.Dial(limited, protocol.AgentName)
	if err != nil {
		machine.Close()
		return nil, err
	}
	d := &domain{
		monitor: machine, dir: dir, pod: t.pod, cards: all, agent: qga.New(agent), log: t.log, poke: make(chan struct{}, 1),
		credentials: t.vmi.Spec.AccessCredentials, secrets: t.driver.secrets(t.pod),
		state: vmstate.Domain{RunState: status.State, Machine: machineType, NICs: all.describe(),
			WantsAccess: credentials.NeedAgent(t.vmi.Spec.AccessCredentials)},
	}
	d.noteRun(status.State)
	if status.State == "shutdown" {
		d.state.Rebooting = now() // only a soft reboot leaves QEMU like this
	}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return d, nil
}

// machineTypeOf finds the machine type in QEMU's arguments.
func machineTypeOf(args []string) string {
	n := slices.Index(args, "-machine")
	if n < 0 || n+1 == len(args) {
		return ""
	}
	machineType, _, _ := strings.Cut(args[n+1], ",")
	return strings.TrimPrefix(machineType, "type=")
}
