package components

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	"patchbay/internal/cluster/cgroup"
	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
	"patchbay/internal/cluster/openvswitch"
	"patchbay/internal/cluster/supervise"
)

func nodeUnits(in Input, node layout.Node) []supervise.Unit {
	name := func(unit string) string { return unitName(node, unit) }
	chassis := in.chassis(node)
	units := []supervise.Unit{{
		Name: name(NodeNamespaces), Node: node.Name, After: []string{Fabric}, Prepare: func(context.Context) error { return in.prepareNode(node) },
	}}
	for _, u := range []supervise.Unit{
		{
			Name: OVSDB, Command: ovsdbCommand(in, node), Probe: unixProbe(node.OVSSocket()),
			Prepare: func(ctx context.Context) error {
				return openvswitch.EnsureDatabase(ctx, node.Path("ovs", "conf.db"), openvswitch.VSwitchSchema)
			},
			Started: func(ctx context.Context) error { return openvswitch.EnsureChassis(ctx, chassis) },
		},
		{
			Name: VSwitchd, Command: vswitchdCommand(in, node), After: []string{name(OVSDB)}, Probe: in.switchProbe(node),
			Prepare: func(ctx context.Context) error { return flowWait(ctx, node, openvswitch.ReplaceFlows) },
		},
		{
			Name: OVNController, Command: ovnControllerCommand(in, node), After: []string{name(VSwitchd), Southbound},
			Prepare: func(ctx context.Context) error {
				if !openvswitch.HasFlows(ctx, node.Path("ovs")) {
					return flowWait(ctx, node, openvswitch.ReplaceFlows)
				}
				return flowWait(ctx, node, openvswitch.KeepFlows)
			},
			Probe: connectedToSouthbound(node.Path("ovn")),
		},
		{Name: Containerd, Command: containerdCommand(in, node), Probe: containerdProbe(node.ContainerdSocket())},
		{
			Name: Kubelet, Command: kubeletCommand(in, node), After: []string{name(VSwitchd), name(Containerd), Bootstrap},
			Probe: httpProbe(namespace.DialContext(node.Namespace()), "http://127.0.0.1:10248/healthz"),
		},
		{
			Name: Agent, Command: agentCommand(in, node), After: []string{name(VSwitchd), Bootstrap}, Probe: unixProbe(node.CNISocket()),
			// The controller publishes the kinds of objects that the agent reads.
			FirstAfter: []string{Controller},
		},
	} {
		u.Name, u.Node = name(u.Name), node.Name
		u.After = append([]string{name(NodeNamespaces)}, u.After...)
		u.Within = withinNode(node)
		u.Env = in.environment(node.Path("tmp"), "OVS_RUNDIR="+node.Path("ovs"), "OVS_DBDIR="+node.Path("ovs"), "OVS_LOGDIR="+node.Path("ovs"),
			"OVN_RUNDIR="+node.Path("ovn"), "OVN_LOGDIR="+node.Path("ovn"))
		units = append(units, process(u))
	}
	return append(units, supervise.Unit{
		Name: name(Images), Node: node.Name, After: []string{name(Containerd)},
		Prepare: func(ctx context.Context) error { return in.Hooks.LoadImages(ctx, node) },
	})
}

// flowWait tells ovn-controller what the process that is about to start means for the flows.
func flowWait(ctx context.Context, node layout.Node, wait time.Duration) error {
	return openvswitch.SetFlowWait(ctx, "unix:"+node.OVSSocket(), wait)
}

func (in Input) chassis(node layout.Node) openvswitch.Chassis {
	return openvswitch.Chassis{
		Database:    "unix:" + node.OVSSocket(),
		Name:        node.Name,
		EncapIPs:    []string{node.IPv4().String()},
		Southbound:  "ssl:" + netip.AddrPortFrom(layout.ControlPlane4, layout.SouthboundPort).String(),
		Key:         node.Path("pki", "ovn-controller.key"),
		Certificate: node.Path("pki", "ovn-controller.crt"),
		Authority:   in.Cluster.PKI("ovn-ca.crt"),
		Datapath:    in.DatapathType(),
		Uplink:      fabric.NodeNIC,
		Bridge:      fabric.NodeBridge,
		BridgeMAC:   node.MAC().String(),
		MTU:         in.Settings.FabricMTU,
	}
}

// switchProbe keeps the node's addresses, too. The user space datapath makes the bridge's device anew with every start, and takes it
// down for a moment when it sets its MAC address, some time later: the kernel forgets the IPv6 address then.
func (in Input) switchProbe(node layout.Node) func(context.Context) error {
	answers := controlProbe(node.Path("ovs", "vswitchd.ctl"), "version")
	return func(ctx context.Context) error {
		if err := answers(ctx); err != nil {
			return err
		}
		return fabric.EnsureNodeAddresses(in.fabric(), node)
	}
}

// prepareNode makes the node's namespaces and the files that its processes read.
func (in Input) prepareNode(node layout.Node) error {
	for _, dir := range []string{"ovs", "ovn", "containerd", "kubelet", "cni/net.d", "cni/bin", "cni/results", "agent", "log", "volume-plugins", "sysctl", "tmp"} {
		if err := os.MkdirAll(node.Path(dir), 0o755); err != nil {
			return err
		}
	}
	for file, content := range in.nodeFiles(node) {
		if err := os.WriteFile(node.Path(file), content, 0o644); err != nil {
			return err
		}
	}
	if err := linkPlugin(in.Programs.CNI, node.Path("cni", "bin", "patchbay-cni")); err != nil {
		return err
	}
	if err := cgroup.Ensure(node.CgroupParent()); err != nil {
		return err
	}
	if err := fabric.EnsureNode(in.fabric(), node); err != nil {
		return err
	}
	_, err := namespace.EnsureMounts(nodeMounts(node))
	return err
}

// linkPlugin puts the CNI plugin where containerd looks for it.
func linkPlugin(program, link string) error {
	if target, err := os.Readlink(link); err == nil && target == program {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(program, link)
}

// kubeletSysctls are the values that kubelet insists on, for the whole host. The host's sysctls are not ours: the node sees
// files with these values in their place.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

func sysctlFile(key string) string { return filepath.Join("sysctl", filepath.Base(key)) }

// nodeMounts keeps what the node's programs write to fixed places away from the host: sockets of containerd's shims below /run,
// links to logs below /var/log, and state below /var/lib.
func nodeMounts(node layout.Node) namespace.Mounts {
	binds := map[string]string{"/var/log": node.Path("log")}
	for key := range kubeletSysctls {
		binds["/proc/sys/"+key] = node.Path(sysctlFile(key))
	}
	return namespace.Mounts{Pin: node.MountNamespace(), Scratch: []string{"/run"}, Binds: binds, Directories: map[string]string{
		// Kubelet looks for device plugins here, whatever its root directory (1.37), and so do plugins and storage drivers.
		"/var/lib/kubelet": node.KubeletRoot(),
		"/var/lib/cni":     node.Path("cni", "results"), // containerd's memory of pods' networks
	}}
}

// nodeFiles are the configuration files of a node by their place below its directory.
func (in Input) nodeFiles(node layout.Node) map[string][]byte {
	files := map[string][]byte{
		"containerd/config.toml": []byte(containerdConfig(in, node)),
		"kubelet/config.yaml":    kubeletConfig(in, node),
		"resolv.conf":            []byte("# written by patchbay up; pods with dnsPolicy Default use it\nnameserver " + layout.ControlPlane4.String() + "\n"),
	}
	for key, value := range kubeletSysctls {
		files[sysctlFile(key)] = []byte(value + "\n")
	}
	return files
}

func ovsdbCommand(in Input, node layout.Node) []string {
	return append([]string{in.Programs.OVSDBServer}, append(ovsLogging[:3:3],
		flag("unixctl", node.Path("ovs", "ovsdb-server.ctl")), flag("remote", "punix:"+node.OVSSocket()),
		"--remote=db:Open_vSwitch,Open_vSwitch,manager_options", node.Path("ovs", "conf.db"))...)
}

func vswitchdCommand(in Input, node layout.Node) []string {
	return append([]string{in.Programs.OVSVSwitchd}, append(ovsLogging[:3:3],
		flag("unixctl", node.Path("ovs", "vswitchd.ctl")), "unix:"+node.OVSSocket())...)
}

func ovnControllerCommand(in Input, node layout.Node) []string {
	return append([]string{in.Programs.OVNController}, append(ovsLogging[:3:3],
		"-p", node.Path("pki", "ovn-controller.key"), "-c", node.Path("pki", "ovn-controller.crt"), "-C", in.Cluster.PKI("ovn-ca.crt"),
		"unix:"+node.OVSSocket())...)
}

func containerdCommand(in Input, node layout.Node) []string {
	return []string{in.Programs.PatchbayKube, "containerd", "--config", node.Path("containerd", "config.toml"), "--log-level", "warn"}
}

func kubeletCommand(in Input, node layout.Node) []string {
	return []string{
		in.Programs.PatchbayKube, "kubelet", flag("config", node.Path("kubelet", "config.yaml")), flag("kubeconfig", node.Path("kubelet.kubeconfig")),
		flag("root-dir", node.KubeletRoot()), flag("cert-dir", node.Path("pki", "kubelet-made")), flag("hostname-override", node.Name),
		flag("node-ip", node.IPv4().String()+","+node.IPv6().String()),
	}
}

func agentCommand(in Input, node layout.Node) []string {
	return []string{
		in.Programs.Patchbay, "agent", "--settings", in.Cluster.SettingsFile(), "--kubeconfig", node.Path("agent.kubeconfig"), "--node", node.Name,
		"--dir", node.Path(), "--ovs", "unix:" + node.OVSSocket(),
	}
}

func containerdConfig(in Input, node layout.Node) string {
	q := strconv.Quote
	return fmt.Sprintf(`version = 3
root = %s
state = %s
# Without this one the kubelet could do nothing: end, and be started again.
required_plugins = ["io.containerd.grpc.v1.cri"]
# NRI and /opt/containerd are shared with the host; the other snapshotters need devices.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = %s

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %s

[plugins."io.containerd.cri.v1.runtime"]
  # The process may not raise its own limits everywhere, and pods' namespaces must vanish with the node.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  # A device that a pod was given belongs to the pod's user: on the node, root owns /dev/kvm.
  device_ownership_from_security_context = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%s]
    conf_dir = %s
    use_internal_loopback = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = %s
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %s
        Root = %s
        SystemdCgroup = false
`, q(node.Path("containerd", "root")), q(node.Path("containerd", "state")), q(node.ContainerdSocket()), q(in.SandboxImage),
		q(node.Path("cni", "bin")), q(node.Path("cni", "net.d")), q(in.Programs.Shim), q(in.Programs.Runc), q(node.Path("containerd", "runc")))
}

func kubeletConfig(in Input, node layout.Node) []byte {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": in.Cluster.PKI("ca.crt")},
		},
		"authorization":     map[string]any{"mode": "Webhook"},
		"tlsCertFile":       node.Path("pki", "kubelet.crt"),
		"tlsPrivateKeyFile": node.Path("pki", "kubelet.key"),
		"address":           "::",
		"clusterDomain":     in.Settings.ClusterDomain,
		"clusterDNS":        texts(in.Settings.ClusterDNS),
		"resolvConf":        node.Path("resolv.conf"),
		// One kubelet per node on one host: cgroups are made by the runtime below a parent of our own, and nothing is reserved.
		"cgroupDriver":              "cgroupfs",
		"cgroupRoot":                node.CgroupParent(),
		"cgroupsPerQOS":             true,
		"enforceNodeAllocatable":    []string{},
		"failCgroupV1":              false,
		"failSwapOn":                false,
		"containerRuntimeEndpoint":  "unix://" + node.ContainerdSocket(),
		"imageServiceEndpoint":      "unix://" + node.ContainerdSocket(),
		"podLogsDir":                node.Path("log", "pods"),
		"volumePluginDir":           node.Path("volume-plugins"),
		"makeIPTablesUtilChains":    false,
		"serializeImagePulls":       false,
		"registerNode":              true,
		"nodeLeaseDurationSeconds":  20,
		"nodeStatusUpdateFrequency": (5 * time.Second).String(),
		"syncFrequency":             (10 * time.Second).String(), // how soon a secret that changes reaches a guest
		// The host's disk is shared by all nodes: a full disk must not make every node throw its images and pods away.
		"evictionHard":                map[string]string{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		"oomScoreAdj":                 0,
		"maxPods":                     250,
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return nil // a map of plain values always has a YAML form
	}
	return data
}

func texts(addrs []netip.Addr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}
