package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"patchbay/internal/netconf"
	"patchbay/internal/network/placement"
	"patchbay/internal/ovn"
	"patchbay/internal/ovn/nb"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/topology"
)

const (
	scaleNetworks = 1000
	scalePorts    = 5000
	portsOfEach   = scalePorts / scaleNetworks
	// probes is how many ports are added one by one at each size.
	probes = 3
)

// scale is the controller's Store with the rows of a large cluster, on real databases with a real northd. Nodes are rows only.
type scale struct {
	central *central
	store   *ovn.Store
	nodes   []string
	added   int // probes
}

// measureScale grows a cluster to 1,000 networks with 5,000 ports and measures at each size what one more port costs: ours until the rows are
// written and until northd has made its own of them, bare with ovn-nbctl on the same databases. Then it loses the Northbound database.
func measureScale(ctx context.Context, _ *bench) (rows []row, err error) {
	c, err := startCentral(ctx)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	s := &scale{central: c}
	defer s.begin(ctx)()
	if rows, err = s.byNodes(ctx); err != nil {
		return rows, err
	}
	if _, err := c.nbctl(ctx, "ls-add", "bench-plain"); err != nil {
		return rows, err
	}
	networks := 0
	for _, upTo := range []int{1, 100, scaleNetworks} {
		if err := s.grow(ctx, networks, upTo); err != nil {
			return rows, fmt.Errorf("%d networks: %w", upTo, err)
		}
		networks = upTo
		more, err := s.onePort(ctx, networks)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("%d networks: %w", upTo, err)
		}
	}
	rebuilt, err := s.rebuild(ctx)
	return append(rows, rebuilt...), err
}

// begin runs the store as the controller does.
func (s *scale) begin(ctx context.Context) (end func()) {
	log := slog.New(slog.DiscardHandler)
	s.store = ovn.NewStore(ovn.Config{
		Dial: ovn.DialOVSDB(s.central.endpoint("nb"), log), Gate: &ovn.Southbound{Endpoint: s.central.endpoint("sb")}, Log: log,
	})
	s.store.Set("cluster", topology.ClusterRows(settings.Default()))
	s.store.Set("guard", topology.GuardRows())
	running, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.store.Run(running) }()
	return func() { cancel(); <-done }
}

func (s *scale) settle(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := s.store.Wait(bounded); err != nil {
		return err
	}
	return s.central.sync(bounded)
}

func (s *scale) addNodes(ctx context.Context, upTo int) error {
	first, rows := len(s.nodes), map[string][]nb.Row{}
	for i := first; i < upTo; i++ {
		s.nodes = append(s.nodes, nodeName(i))
		rows["node/"+nodeName(i)] = topology.NodeRows(topology.Node{Name: nodeName(i), Subnets: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(i>>7), byte(i<<1) & 0xff, 0}), 23),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:128:%x::/64", i)),
		}})
	}
	s.store.SetAll(rows)
	if err := s.central.addChassis(ctx, first, upTo-first); err != nil {
		return err
	}
	return s.settle(ctx)
}

// byNodes counts what one network consists of on more and more nodes.
func (s *scale) byNodes(ctx context.Context) (rows []row, err error) {
	for n, nodes := range []int{2, 50, 250} {
		if err := s.addNodes(ctx, nodes); err != nil {
			return rows, fmt.Errorf("%d nodes: %w", nodes, err)
		}
		before, err := s.central.southboundRows(ctx)
		if err != nil {
			return rows, err
		}
		wanted := s.networkRows(scaleNetworks + n)
		s.store.SetAll(wanted)
		if err := s.settle(ctx); err != nil {
			return rows, err
		}
		after, err := s.central.southboundRows(ctx)
		if err != nil {
			return rows, err
		}
		northbound := 0
		for _, r := range wanted {
			northbound += len(r)
		}
		rows = append(rows,
			row{Figure: fmt.Sprintf("rows of a network on %d nodes: northbound", nodes), Ours: float64(northbound)},
			row{Figure: "… southbound, with flows", Ours: float64(after - before)})
	}
	return rows, nil
}

// network is a tenant's primary network.
func (s *scale) network(i int) topology.Network {
	return topology.Network{
		Name: fmt.Sprintf("tenant-%d", i), ID: i + 1, Topology: netconf.Layer2, Role: podnetworks.Primary, MTU: 1400,
		Subnets:    []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix("fd00:20::/64")},
		Gateways:   []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("fd00:20::1")},
		Namespaces: []string{fmt.Sprintf("tenant-%d", i)}, DNS: settings.Default().ClusterDNS, Domain: settings.Default().ClusterDomain,
	}
}

func (s *scale) networkRows(i int) map[string][]nb.Row {
	n := s.network(i)
	return map[string][]nb.Row{
		"network/" + n.Name: topology.NetworkRows(n),
		"gateway/" + n.Name: topology.GatewayRows(topology.Gateway{
			Network: n.Name, ID: n.ID, Subnets: n.Subnets, Switches: n.Switches(), Chassis: placement.Chassis(n.Name, s.nodes),
		}),
	}
}

// nicRows are the port of a network's machine.
func (s *scale) nicRows(network, machine int) (owner string, rows []nb.Row) {
	n := s.network(network)
	var last [4]byte
	binary.BigEndian.PutUint32(last[:], uint32(machine+10))
	four := netip.AddrFrom4([4]byte{10, 20, last[2], last[3]})
	six := n.Subnets[1].Addr().As16()
	copy(six[12:], last[:])
	nic := topology.NIC{
		Namespace: n.Namespaces[0], VMI: fmt.Sprintf("vm-%d", machine), Name: "default", Network: n, MAC: podnetworks.MAC(four),
		IPs:      []netip.Prefix{netip.PrefixFrom(four, 16), netip.PrefixFrom(netip.AddrFrom16(six), 64)},
		Hostname: fmt.Sprintf("vm-%d", machine), Chassis: []string{s.nodes[(network*7+machine)%len(s.nodes)]},
	}
	return "nic/" + n.Name + "/" + nic.VMI, topology.NICRows(nic)
}

func (s *scale) grow(ctx context.Context, from, to int) error {
	for i := from; i < to; i++ {
		rows := s.networkRows(i)
		for m := range portsOfEach {
			owner, nic := s.nicRows(i, m)
			rows[owner] = nic
		}
		s.store.SetAll(rows)
	}
	return s.settle(ctx)
}

// onePort adds ports one by one, ours and plain ones in turn.
func (s *scale) onePort(ctx context.Context, networks int) ([]row, error) {
	var written, done, plain []time.Duration
	for range probes {
		s.added++
		owner, nic := s.nicRows(networks/2, portsOfEach+s.added)
		begin := time.Now()
		s.store.Set(owner, nic)
		if err := s.store.Wait(ctx); err != nil {
			return nil, err
		}
		written = append(written, time.Since(begin))
		if err := s.central.sync(ctx); err != nil {
			return nil, err
		}
		done = append(done, time.Since(begin))
		name := fmt.Sprintf("plain-%d", s.added)
		begin = time.Now()
		_, err := s.central.nbctl(ctx, "--wait=sb", "lsp-add", "bench-plain", name, "--", "lsp-set-addresses", name, fmt.Sprintf("0a:58:0a:00:00:%02x 10.0.0.%d", s.added, s.added))
		if err != nil {
			return nil, err
		}
		plain = append(plain, time.Since(begin))
	}
	what := fmt.Sprintf("one more port beside %d networks with %d ports", networks, networks*portsOfEach)
	return []row{
		{Figure: what + ": written", Unit: "ms", Ours: 1000 * median(written)},
		{Figure: "… through northd; bare: ovn-nbctl", Unit: "ms", Ours: 1000 * median(done), Bare: 1000 * median(plain)},
	}, nil
}

// rebuild loses the Northbound database. The bare engine puts the same rows into an empty one from a backup.
func (s *scale) rebuild(ctx context.Context) ([]row, error) {
	ports, err := s.ports(ctx)
	if err != nil {
		return nil, err
	}
	bare, err := s.restore(ctx)
	if err != nil {
		return nil, fmt.Errorf("restore a backup: %w", err)
	}
	begin := time.Now()
	if err := s.central.wipe(ctx, "nb"); err != nil {
		return nil, err
	}
	for { // the plain ports of the probes do not come back
		now, err := s.ports(ctx)
		if err != nil {
			return nil, err
		}
		if now >= ports-s.added {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	if err := s.store.Wait(ctx); err != nil {
		return nil, err
	}
	written := time.Since(begin)
	if err := s.central.sync(ctx); err != nil {
		return nil, err
	}
	return []row{
		{Figure: fmt.Sprintf("northbound database of %d networks and %d ports lost → written again; bare: from a backup", scaleNetworks, ports-s.added), Unit: "s",
			Ours: written.Seconds(), Bare: bare.Seconds(), Goal: "30"},
		{Figure: "… and through northd", Unit: "s", Ours: time.Since(begin).Seconds()},
	}, nil
}

func (s *scale) ports(ctx context.Context) (int, error) {
	// ovn-nbctl would copy the whole database each time.
	out, err := command(ctx, "ovsdb-client", "transact", s.central.remote("nb"),
		`["OVN_Northbound",{"op":"select","table":"Logical_Switch_Port","where":[],"columns":["_uuid"]}]`)
	return strings.Count(out, `"_uuid"`), err
}

// restore times ovsdb-client filling another empty database with the same rows.
func (s *scale) restore(ctx context.Context) (time.Duration, error) {
	backup := s.central.path("backup")
	file, err := os.Create(backup)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	save := exec.CommandContext(ctx, "ovsdb-client", "backup", s.central.remote("nb"), "OVN_Northbound")
	save.Stdout = file
	if err := save.Run(); err != nil {
		return 0, err
	}
	other := &central{dir: s.central.path("other"), processes: map[string]*exec.Cmd{}}
	defer other.stop()
	if err := os.Mkdir(other.dir, 0o700); err != nil {
		return 0, err
	}
	if err := other.create(ctx, "nb"); err != nil {
		return 0, err
	}
	if err := other.serve(ctx, "nb"); err != nil {
		return 0, err
	}
	if _, err := file.Seek(0, 0); err != nil {
		return 0, err
	}
	load := exec.CommandContext(ctx, "ovsdb-client", "--force", "restore", other.remote("nb"), "OVN_Northbound")
	load.Stdin = file
	begin := time.Now()
	out, err := load.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, slices.Clip(out))
	}
	return time.Since(begin), err
}
