package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/guestshell"
)

// How often each side of a comparison streams, and how often it pings.
const (
	speedTurns     = 6
	roundTripTurns = 16
)

const tenantNetwork = `apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: tenant}
spec:
  topology: Layer2
  layer2: {role: Primary, subnets: [10.101.0.0/24], ipam: {lifecycle: Persistent}}
`

// measureTenant compares two machines on a tenant's primary network, on two nodes, with two plain QEMUs of the same guest whose taps are
// plain OVN ports on the same bridges. Only what Patchbay puts between guest and switch differs.
func measureTenant(ctx context.Context, b *bench) ([]row, error) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench-tenant", Labels: map[string]string{"k8s.ovn.org/primary-user-defined-network": ""}}}
	if err := b.cluster.Client.Create(ctx, ns); err != nil {
		return nil, err
	}
	defer b.cluster.Client.Delete(context.WithoutCancel(ctx), ns)
	ours, oursIP, err := b.tenantGuests(ctx, ns.Name)
	if err != nil {
		return nil, fmt.Errorf("machines: %w", err)
	}
	defer ours.Close()
	like, err := optionsOf(ns.Name + "_from")
	if err != nil {
		return nil, err
	}
	pair, err := b.plainGuests(ctx, like)
	if err != nil {
		return nil, fmt.Errorf("plain guests: %w", err)
	}
	defer pair.remove(context.WithoutCancel(ctx))
	paths, err := compare(ctx, [2]side{{"machines", ours.Run, oursIP}, {"plain guests", pair.client.Run, pair.ip}})
	if err != nil {
		return nil, err
	}
	mine, bare := paths[0], paths[1]
	return []row{
		{Figure: "TCP VM → VM on a tenant's network, across nodes; bare: plain QEMU on plain OVN ports", Unit: "Mbit/s", Ours: mine.mbits, Bare: bare.mbits, Goal: "0.95 ×"},
		{Figure: "round trip VM → VM on a tenant's network, across nodes; bare: the same", Unit: "ms", Ours: mine.rtt, Bare: bare.rtt, Goal: "1.1 ×"},
	}, nil
}

// side is one of two paths that are compared: from a guest to an address.
type side struct {
	name string
	run  runner
	ip   string
}

// compare measures two paths. The figures are the medians of the streams, and of all single round trips.
func compare(ctx context.Context, sides [2]side) (paths [2]path, err error) {
	speeds, err := inTurns(sides, speedTurns, func(s side) ([]float64, error) {
		mbits, err := measureSpeed(ctx, s.run, s.ip)
		return []float64{mbits}, err
	})
	if err != nil {
		return paths, err
	}
	times, err := inTurns(sides, roundTripTurns, func(s side) ([]float64, error) { return measureRoundTrips(ctx, s.run, s.ip) })
	if err != nil {
		return paths, err
	}
	for n := range paths {
		paths[n] = path{mbits: middle(speeds[n]), rtt: middle(times[n])}
	}
	return paths, nil
}

// inTurns measures both sides in short turns, now one first and now the other: what else the machine does meets both.
func inTurns(sides [2]side, turns int, measure func(side) ([]float64, error)) (all [2][]float64, err error) {
	for turn := range 2 * turns {
		n := (turn + turn/2) % 2 // 0 1, 1 0, 0 1 …
		some, err := measure(sides[n])
		if err != nil {
			return all, fmt.Errorf("%s: %w", sides[n].name, err)
		}
		all[n] = append(all[n], some...)
	}
	return all, nil
}

// tenantGuests starts a machine on each node and returns a shell in the first, and the second's address.
func (b *bench) tenantGuests(ctx context.Context, namespace string) (*guestshell.Shell, string, error) {
	if _, errout, err := b.cluster.ApplyVerbose(ctx, namespace, tenantNetwork); err != nil {
		return nil, "", fmt.Errorf("%w %s", err, errout)
	}
	err := b.until(ctx, time.Minute, func() error {
		out, err := b.cluster.Kubectl(ctx, "get", "udn", "tenant", "-n", namespace, "-o", "jsonpath={.status.conditions[?(@.type=='NetworkCreated')].status}")
		if err == nil && out != "True" {
			err = fmt.Errorf("NetworkCreated is %q", out)
		}
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return b.guestPair(ctx, namespace)
}

// guestPair starts a machine on each node and returns a shell in the first, and the second's address.
func (b *bench) guestPair(ctx context.Context, namespace string) (*guestshell.Shell, string, error) {
	from, to := benchVMI(namespace, "from", "node-1"), benchVMI(namespace, "to", "node-2")
	for _, vmi := range []client.Object{from, to} {
		if err := b.cluster.Client.Create(ctx, vmi); err != nil {
			return nil, "", err
		}
	}
	ip, err := b.waitForIP(ctx, to)
	if err != nil {
		return nil, "", err
	}
	if _, err := b.waitForIP(ctx, from); err != nil {
		return nil, "", err
	}
	console, err := guestshell.Dial(ctx, b.cluster.Config, namespace, "from")
	if err != nil {
		return nil, "", err
	}
	shell := guestshell.New(console, guestshell.Login{User: "root", Password: "patchbay"})
	bounded, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return shell, ip, shell.Ready(bounded)
}

// plainPair is a guest on each node, on plain ports.
type plainPair struct {
	net    *plainNet
	guests []*plainGuest
	client *guestshell.Shell // in the first
	ip     string            // of the second
	dir    string
}

func (b *bench) plainGuests(ctx context.Context, like likeOurs) (_ *plainPair, err error) {
	p := &plainPair{}
	defer func() {
		if err != nil {
			p.remove(context.WithoutCancel(ctx))
		}
	}()
	if p.dir, err = os.MkdirTemp("", "pb-bench-"); err != nil {
		return nil, err
	}
	if p.net, err = b.plainNetwork(ctx, "bench-pair", "10.102.0.0/24"); err != nil {
		return nil, err
	}
	for n, node := range b.cluster.Nodes[:2] {
		g, err := p.add(ctx, b, node, n, like)
		if err != nil {
			return nil, err
		}
		p.guests = append(p.guests, g)
	}
	p.ip = "10.102.0.11"
	p.client, err = p.guests[0].shell(ctx)
	return p, err
}

func (p *plainPair) add(ctx context.Context, b *bench, node string, n int, like likeOurs) (*plainGuest, error) {
	port, device := "bench-pair-"+node, fmt.Sprintf("benchp%d", n)
	mac, ip := fmt.Sprintf("0a:58:0a:66:00:%02x", 10+n), fmt.Sprintf("10.102.0.%d", 10+n)
	if err := p.net.port(ctx, port, mac, ip); err != nil {
		return nil, err
	}
	if err := p.net.tap(ctx, node, device, port); err != nil {
		return nil, err
	}
	disk := filepath.Join(p.dir, node+".qcow2")
	if err := b.overlay(ctx, disk); err != nil {
		return nil, err
	}
	return b.startGuest(ctx, plainGuestConfig{dir: filepath.Join(p.dir, node), node: node, tap: device, mac: mac, disk: disk, like: like})
}

func (p *plainPair) remove(ctx context.Context) {
	if p.client != nil {
		_ = p.client.Close()
	}
	for _, g := range p.guests {
		g.stop()
	}
	if p.net != nil {
		p.net.remove(ctx)
	}
	if strings.Contains(p.dir, "pb-bench-") {
		_ = os.RemoveAll(p.dir)
	}
}
