package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/qemu/qmp"
)

// Names and addresses of the plain guest that moves.
const (
	moverPort, moverTap    = "bench-mover", "benchm"
	moverMAC, moverIP      = "0a:58:0a:68:00:0a", "10.104.0.10"
	watcherMAC, watcherIP  = "0a:58:0a:68:00:0b", "10.104.0.11"
	watcherNS, watcherVeth = "bench-watcher", "benchw"
	nbdPort, streamPort    = "49200", "49201"
)

// plainMover moves a guest between the nodes as a person with QEMU's and OVN's own commands would: the port on both nodes meanwhile, the
// disk mirrored, the memory sent without encryption, nobody else asked.
type plainMover struct {
	bench *bench
	net   *plainNet
	dir   string
	like  likeOurs
	ips   map[string]string // of the nodes
	guest *plainGuest
	node  string
}

func (b *bench) movePlain(ctx context.Context, like likeOurs) (all []moved, err error) {
	m := &plainMover{bench: b, like: like, node: "node-1", ips: map[string]string{}}
	defer m.remove(context.WithoutCancel(ctx))
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(m.dir, "ping.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ping := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+watcherNS, "ping", "-D", "-i", "0.01", moverIP)
	ping.Stdout = log
	if err := ping.Start(); err != nil {
		return nil, err
	}
	defer stop(ping)
	for n := range plainMoves {
		one, err := m.move(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("migration %d: %w", n, err)
		}
		all = append(all, one)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle + 500*time.Millisecond): // pings still belong to it
		}
	}
	out, err := os.ReadFile(log.Name())
	if err != nil {
		return nil, err
	}
	return all, fillGaps(all, string(out))
}

// begin makes the network, boots the guest on the first node and joins a namespace there that pings it.
func (m *plainMover) begin(ctx context.Context) (err error) {
	for _, name := range m.bench.cluster.Nodes {
		node := &corev1.Node{}
		if err := m.bench.cluster.Client.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
			return err
		}
		m.ips[name] = node.Status.Addresses[0].Address
	}
	if m.dir, err = os.MkdirTemp("", "pb-bench-"); err != nil {
		return err
	}
	if m.net, err = m.bench.plainNetwork(ctx, "bench-mover", "10.104.0.0/24"); err != nil {
		return err
	}
	if err := m.net.port(ctx, moverPort, moverMAC, moverIP, "options:requested-chassis="+m.node); err != nil {
		return err
	}
	if err := m.net.tap(ctx, m.node, moverTap, moverPort); err != nil {
		return err
	}
	if err := m.net.host(ctx, m.node, watcherVeth, watcherNS, watcherMAC, watcherIP+"/24"); err != nil {
		return err
	}
	if m.guest, err = m.start(ctx, m.node, "first", false); err != nil {
		return err
	}
	return pingUntil(ctx, watcherNS, moverIP)
}

func (m *plainMover) start(ctx context.Context, node, name string, incoming bool) (*plainGuest, error) {
	disk := filepath.Join(m.dir, name+".qcow2")
	if err := m.bench.overlay(ctx, disk); err != nil {
		return nil, err
	}
	return m.bench.startGuest(ctx, plainGuestConfig{
		dir: filepath.Join(m.dir, name), node: node, tap: moverTap, mac: moverMAC, disk: disk, incoming: incoming, like: m.like,
	})
}

func (m *plainMover) place(ctx context.Context, options ...string) error {
	_, err := m.bench.nbctl(ctx, append([]string{"remove", "logical_switch_port", moverPort, "options", "activation-strategy",
		"--", "set", "logical_switch_port", moverPort}, options...)...)
	return err
}

// move migrates once. What has to be ready on the target beforehand (tap, flows) is not counted.
func (m *plainMover) move(ctx context.Context, n int) (moved, error) {
	from, to := m.node, m.bench.cluster.Nodes[0]
	if to == from {
		to = m.bench.cluster.Nodes[1]
	}
	if err := m.place(ctx, `options:requested-chassis="`+from+","+to+`"`, "options:activation-strategy=rarp"); err != nil {
		return moved{}, err
	}
	if err := m.net.tap(ctx, to, moverTap, moverPort); err != nil {
		return moved{}, err
	}
	one := moved{began: time.Now()}
	target, err := m.start(ctx, to, fmt.Sprintf("move-%d", n), true)
	if err != nil {
		return one, err
	}
	old := m.guest
	if err := m.send(ctx, old.monitor, target.monitor, m.ips[to]); err != nil {
		target.stop()
		return one, err
	}
	one.ended = time.Now()
	m.guest, m.node = target, to
	err = m.place(ctx, "options:requested-chassis="+to)
	old.stop()
	m.net.untap(ctx, from, moverTap)
	return one, err
}

// send brings the guest from one QEMU to another and lets it run there.
func (m *plainMover) send(ctx context.Context, from, to qmp.Machine, ip string) error {
	raw := func(on qmp.Machine, name string, args map[string]any) func() error {
		return func() error { return on.Execute(ctx, qmp.Command{Name: name, Args: args}, nil) }
	}
	inet := map[string]any{"type": "inet", "host": ip, "port": nbdPort}
	events := from.Subscribe()
	defer events.Close()
	return inOrder(
		raw(to, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "inet", "data": map[string]any{"host": ip, "port": nbdPort}}}),
		func() error { return to.ExportNBD(ctx, "disk0") },
		func() error { return to.SetMigrationCapabilities(ctx, map[string]bool{"late-block-activate": true}) },
		func() error { return to.MigrateIncoming(ctx, "tcp:"+ip+":"+streamPort) },
		raw(from, "blockdev-add", map[string]any{"driver": "nbd", "node-name": "remote", "export": "disk0", "server": inet}),
		func() error { return from.Mirror(ctx, "mirror", "disk0", "remote", qmp.MirrorAll, 0) },
		func() error { return awaitEvent(ctx, events, "BLOCK_JOB_READY") },
		func() error {
			return from.SetMigrationCapabilities(ctx, map[string]bool{"events": true, "pause-before-switchover": true, "late-block-activate": true})
		},
		func() error {
			return from.SetMigrationParameters(ctx, map[string]any{"max-bandwidth": int64(100) << 30, "downtime-limit": 20})
		},
		func() error { return from.Migrate(ctx, "tcp:"+ip+":"+streamPort) },
		func() error { return awaitMigration(ctx, events, qmp.MigrationSwitchover) },
		func() error { return from.EndMirror(ctx, "mirror", false) },
		func() error { return awaitEvent(ctx, events, "BLOCK_JOB_COMPLETED") },
		func() error { return from.ContinueMigration(ctx, qmp.MigrationSwitchover) },
		func() error { return awaitMigration(ctx, events, qmp.MigrationCompleted) },
		func() error { return to.StopNBD(ctx) },
		func() error { return to.Resume(ctx) },
	)
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func awaitEvent(ctx context.Context, events *qmp.Subscription, name string) error {
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := events.Until(bounded, func(e qmp.Event) bool { return e.Name == name }); err != nil {
		return fmt.Errorf("wait for QEMU's %s: %w", name, err)
	}
	return nil
}

func awaitMigration(ctx context.Context, events *qmp.Subscription, status string) error {
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var data qmp.MigrationData
	_, err := events.Until(bounded, func(e qmp.Event) bool {
		return e.Name == qmp.EventMigration && e.Decode(&data) == nil && (data.Status == status || data.Status == qmp.MigrationFailed)
	})
	if err == nil && data.Status != status {
		err = errors.New("QEMU could not send the guest")
	}
	return err
}

func (m *plainMover) remove(ctx context.Context) {
	if m.guest != nil {
		m.guest.stop()
	}
	if m.net != nil {
		_, _ = m.bench.vsctl(ctx, "node-1", "--if-exists", "del-port", "br-int", watcherVeth)
		_, _ = command(ctx, "ip", "netns", "del", watcherNS)
		m.net.remove(ctx)
	}
	if m.dir != "" {
		_ = os.RemoveAll(m.dir)
	}
}
