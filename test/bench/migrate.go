package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	moves      = 20
	plainMoves = 10
)

const moveNetwork = `{"cniVersion": "0.3.1", "name": "bench-move", "type": "ovn-k8s-cni-overlay", "topology": "layer2",
	"subnets": "10.103.0.0/24", "netAttachDefName": "bench-move/blue"}`

// moved is one migration: when it began, when the guest ran at its new place, and how long nothing was heard of it.
type moved struct {
	began, ended time.Time
	gap          time.Duration
}

// measureMigrate moves a machine on a layer 2 network there and back under pings and one TCP connection, and a plain guest from QEMU to QEMU
// over the same wires.
func measureMigrate(ctx context.Context, b *bench) ([]row, error) {
	ns, err := b.namespace(ctx, "bench-move")
	if err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	manifest := "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: blue}\nspec:\n  config: '" + moveNetwork + "'\n"
	if _, errout, err := b.cluster.ApplyVerbose(ctx, ns.Name, manifest); err != nil {
		return nil, fmt.Errorf("%w %s", err, errout)
	}
	vmi, err := b.movable(ctx, ns.Name)
	if err != nil {
		return nil, err
	}
	like, err := optionsOf(ns.Name + "_mover")
	if err != nil {
		return nil, err
	}
	ours, broken, err := b.moveMachine(ctx, vmi)
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	if err := b.cluster.Client.Delete(ctx, vmi); err != nil {
		return nil, err
	}
	bare, err := b.movePlain(ctx, like)
	if err != nil {
		return nil, fmt.Errorf("plain QEMU: %w", err)
	}
	return moveRows(ours, bare, broken), nil
}

func moveRows(ours, bare []moved, broken int) []row {
	split := func(all []moved) (gaps, times []time.Duration) {
		for _, m := range all {
			gaps, times = append(gaps, m.gap), append(times, m.ended.Sub(m.began))
		}
		slices.Sort(gaps)
		slices.Sort(times)
		return gaps, times
	}
	gaps, times := split(ours)
	bareGaps, bareTimes := split(bare)
	return []row{
		{Figure: fmt.Sprintf("live migration: gap at 10 ms pings, p50 over %d", len(ours)), Unit: "ms", Ours: percentile(gaps, 50), Bare: percentile(bareGaps, 50), Goal: "50"},
		{Figure: "… p99", Unit: "ms", Ours: percentile(gaps, 99), Bare: percentile(bareGaps, 99), Goal: "200"},
		{Figure: "… TCP connections that broke", Ours: float64(broken), Goal: "0"},
		{Figure: "… request → Succeeded, median; bare: QEMU started → guest runs there", Unit: "s", Ours: percentile(times, 50) / 1000,
			Bare: percentile(bareTimes, 50) / 1000, Goal: "1.5 ×"},
	}
}

// movable starts the machine, and a pod beside it that pings.
func (b *bench) movable(ctx context.Context, namespace string) (*virtv1.VirtualMachineInstance, error) {
	vmi := benchVMI(namespace, "mover", "node-1")
	vmi.Spec.NodeSelector = nil
	vmi.Spec.Networks = []virtv1.Network{{Name: "blue", NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "blue"}}}}
	nic := virtv1.Interface{Name: "blue"}
	nic.Bridge = &virtv1.InterfaceBridge{}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{nic}
	pod := toolboxPod(namespace, "pinger", "node-1")
	pod.Annotations = map[string]string{"k8s.v1.cni.cncf.io/networks": "blue"}
	for _, object := range []client.Object{vmi, pod} {
		if err := b.cluster.Client.Create(ctx, object); err != nil {
			return nil, err
		}
	}
	if err := b.waitForPods(ctx, namespace, 2); err != nil {
		return nil, err
	}
	ip, err := b.waitForIP(ctx, vmi)
	if err != nil {
		return nil, err
	}
	_, err = b.cluster.InPod(ctx, namespace, "pinger", "sh", "-c", "until ping -c1 -W1 "+ip+" && nc.openbsd -z -w1 "+ip+" 7; do sleep 0.1; done >/dev/null 2>&1")
	return vmi, err
}

// Scripts in the pod. The connection's echoes are numbered; a broken one leaves a word.
const (
	beginPing = "/bin/ping -D -i 0.01 %s >/tmp/ping.log 2>&1 &"
	beginTCP  = "(n=0; while sleep 0.05; do n=$((n+1)); echo $n; done | nc.openbsd %s 7 >/tmp/tcp.log 2>&1; echo broken >>/tmp/tcp.log) >/dev/null 2>&1 &"
	lastEcho  = "tail -n 1 /tmp/tcp.log"
)

// moveMachine migrates the machine to and fro, and counts broken connections.
func (b *bench) moveMachine(ctx context.Context, vmi *virtv1.VirtualMachineInstance) (all []moved, broken int, err error) {
	in := func(script string) (string, error) {
		return b.cluster.InPod(ctx, vmi.Namespace, "pinger", "sh", "-c", script)
	}
	ip := vmi.Status.Interfaces[0].IP
	if _, err := in(fmt.Sprintf(beginPing, ip) + " " + fmt.Sprintf(beginTCP, ip)); err != nil {
		return nil, 0, err
	}
	for n := range moves {
		m, err := b.move(ctx, vmi, n)
		if err != nil {
			return nil, 0, err
		}
		all = append(all, m)
	}
	echo := func() (int, error) {
		out, err := in(lastEcho)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(out))
	}
	before, err := echo()
	if err != nil {
		broken = 1 // the last line is no number
	}
	err = b.until(ctx, 10*time.Second, func() error {
		if after, err := echo(); err != nil || after <= before {
			return fmt.Errorf("echo %d follows %d: %w", after, before, err)
		}
		return nil
	})
	if err != nil {
		broken = 1
	}
	out, err := in("cat /tmp/ping.log")
	if err != nil {
		return nil, 0, err
	}
	return all, broken, fillGaps(all, out)
}

// settle is how long after a migration's end pings still belong to it.
const settle = time.Second

func fillGaps(all []moved, log string) error {
	heard, err := parseAnswers(log)
	if err != nil {
		return err
	}
	for n := range all {
		if all[n].gap, err = heard.gap(all[n].began, all[n].ended.Add(settle)); err != nil {
			return err
		}
	}
	return nil
}

// move migrates once and waits until the network has settled.
func (b *bench) move(ctx context.Context, vmi *virtv1.VirtualMachineInstance, n int) (moved, error) {
	job := &virtv1.VirtualMachineInstanceMigration{
		ObjectMeta: metav1.ObjectMeta{Namespace: vmi.Namespace, Name: fmt.Sprintf("move-%d", n)},
		Spec:       virtv1.VirtualMachineInstanceMigrationSpec{VMIName: vmi.Name},
	}
	m := moved{began: time.Now()}
	if err := b.cluster.Client.Create(ctx, job); err != nil {
		return m, err
	}
	err := b.until(ctx, 2*time.Minute, func() error {
		if err := b.cluster.Client.Get(ctx, client.ObjectKeyFromObject(job), job); err != nil {
			return err
		}
		if !job.IsFinal() {
			return fmt.Errorf("phase %q", job.Status.Phase)
		}
		return nil
	})
	m.ended = time.Now()
	if err == nil && job.Status.Phase != virtv1.MigrationSucceeded {
		err = fmt.Errorf("migration %d ended as %s: %+v", n, job.Status.Phase, job.Status.MigrationState)
	}
	if err != nil {
		return m, err
	}
	return m, b.until(ctx, time.Minute, func() error { // the old pod goes, so that the next migration finds what the first one found
		out, err := b.cluster.Kubectl(ctx, "get", "pods", "-n", vmi.Namespace, "-l", "kubevirt.io=virt-launcher", "--field-selector", "status.phase=Running", "-o", "name")
		if running := len(strings.Fields(out)); err == nil && (running != 1 || time.Since(m.ended) < settle+500*time.Millisecond) {
			err = fmt.Errorf("%d pods of the machine run", running)
		}
		return err
	})
}
