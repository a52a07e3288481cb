package vmdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/agent/migration"
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
	return t.run(ctx, Wirer.Open, t.launch)
}

// attach takes up a guest that runs. No failure of it is final: the guest does not depend on this agent.
func (t takeUp) attach(ctx context.Context) (*domain, error) {
	d, err := t.run(ctx, Wirer.Refresh, func(context.Context, *client.RunDir, cards) (string, error) { return "", nil })
	if err != nil {
		return nil, NotYet(err)
	}
	return d, nil
}

// run joins the NICs, does what makes QEMU run, and connects to its monitor. Nothing is held when it fails.
func (t takeUp) run(ctx context.Context, how wire, launch func(context.Context, *client.RunDir, cards) (string, error)) (_ *domain, err error) {
	pod, ok := t.driver.Pods.Get(t.pod)
	if !ok {
		return nil, fmt.Errorf("the network of pod %s is not recorded", t.pod)
	}
	dir, err := client.Open(t.driver.runDir(t.pod))
	if err != nil {
		return nil, err
	}
	var all cards
	defer func() {
		if err != nil {
			all.discard()
			dir.Close()
		}
	}()
	dns, err := podDNS(ctx, dir, t.vmi.Spec.Subdomain)
	if err != nil {
		return nil, err
	}
	if all, err = t.driver.join(ctx, t.vmi, pod, dns, how); err != nil {
		return nil, networkError(err)
	}
	machineType, err := launch(ctx, dir, all)
	if err != nil {
		return nil, err
	}
	return t.connect(ctx, dir, all, machineType)
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

// launch has the launcher start QEMU, and tells the machine type.
func (t takeUp) launch(ctx context.Context, dir *client.RunDir, all cards) (string, error) {
	if t.accel == qemu.KVM {
		all.openVhost(t.driver.OpenVhost)
	}
	plan, err := t.plan(ctx, all)
	if err != nil {
		return "", err
	}
	_, files := all.plan()
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

// plan is what the launcher is told.
func (t takeUp) plan(ctx context.Context, all cards) (protocol.Start, error) {
	claims, err := t.driver.claims(ctx, t.vmi)
	if err != nil {
		return protocol.Start{}, err
	}
	keys, err := t.driver.publicKeys(ctx, t.vmi)
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
	return plan, nil
}

// connect attaches to QEMU's monitor and to the guest agent's channel.
func (t takeUp) connect(ctx context.Context, dir *client.RunDir, all cards, machineType string) (*domain, error) {
	limited, cancelLimit := context.WithTimeout(ctx, actLimit)
	defer cancelLimit()
	conn, err := dir.Dial(limited, protocol.QMPName)
	if err != nil {
		return nil, err
	}
	monitor, err := qmp.New(limited, conn)
	if err != nil {
		return nil, err
	}
	machine := qmp.Machine{Monitor: monitor}
	status, err := machine.Status(limited)
	if err != nil {
		monitor.Close()
		return nil, err
	}
	agent, err := dir.Dial(limited, protocol.AgentName)
	if err != nil {
		monitor.Close()
		return nil, err
	}
	d := &domain{
		monitor: machine, dir: dir, pod: t.pod, cards: all, agent: qga.New(agent), log: t.log, poke: make(chan struct{}, 1),
		state: vmstate.Domain{RunState: status.State, Machine: machineType, NICs: all.describe()},
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
