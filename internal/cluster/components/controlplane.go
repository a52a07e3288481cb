package components

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/openvswitch"
	"patchbay/internal/cluster/supervise"
)

func controlPlane(in Input) []supervise.Unit {
	units := []supervise.Unit{{
		Name: Fabric, Prepare: func(context.Context) error {
			if err := os.MkdirAll(in.Cluster.Path("tmp"), 0o700); err != nil {
				return err
			}
			return fabric.EnsureControlPlane(in.fabric())
		},
	}}
	for _, u := range []supervise.Unit{
		{Name: Northbound, Command: northboundCommand(in), Prepare: in.database("nb.db", openvswitch.NBSchema), Probe: unixProbe(in.Cluster.OVN("nb.sock"))},
		{Name: Southbound, Command: southboundCommand(in), Prepare: in.database("sb.db", openvswitch.SBSchema), Probe: unixProbe(in.Cluster.OVN("sb.sock"))},
		{Name: Etcd, Command: etcdCommand(in), Probe: in.fabricHTTP("http://127.0.0.1:2381/readyz")},
		{Name: APIServer, Command: apiServerCommand(in), After: []string{Etcd}, Probe: in.apiReady(), Grace: 20 * time.Second},
		{Name: Northd, Command: northdCommand(in), After: []string{Northbound, Southbound}, Probe: controlProbe(in.Cluster.OVN("northd.ctl"), "status")},
		{Name: ControllerManager, Command: controllerManagerCommand(in), After: []string{APIServer}, Probe: in.fabricHTTP("https://127.0.0.1:10257/healthz")},
		{Name: Scheduler, Command: schedulerCommand(in), After: []string{APIServer}, Probe: in.fabricHTTP("https://127.0.0.1:10259/readyz")},
	} {
		units = append(units, in.inFabric(u))
	}
	units = append(units,
		supervise.Unit{Name: APIProxy, After: []string{Fabric}, Prepare: in.Hooks.ServeAPI, Probe: in.Hooks.ProbeAPI},
		supervise.Unit{Name: Bootstrap, After: []string{APIServer}, Prepare: in.Hooks.Bootstrap},
	)
	if in.Hooks.Expose != nil {
		units = append(units, supervise.Unit{Name: Expose, After: []string{Fabric}, Prepare: in.Hooks.Expose})
	}
	return append(units, in.inFabric(supervise.Unit{
		Name: Controller, Command: controllerCommand(in), After: []string{Bootstrap, Northbound, Southbound},
		Probe: in.fabricHTTP("https://" + netip.AddrPortFrom(layout.ControlPlane4, layout.ControllerPort).String() + "/readyz"),
	}), in.inFabric(supervise.Unit{
		Name: DNS, Command: dnsCommand(in), After: []string{Bootstrap},
		Probe: in.fabricTCP(netip.AddrPortFrom(layout.ControlPlane4, dnsPort)),
	}))
}

// inFabric completes a process of the control plane.
func (in Input) inFabric(u supervise.Unit) supervise.Unit {
	u.After = append([]string{Fabric}, u.After...)
	u.Within = in.withinFabric
	u.Env = in.environment(in.Cluster.Path("tmp"), "OVN_RUNDIR="+in.Cluster.OVN(), "OVS_RUNDIR="+in.Cluster.OVN())
	return process(u)
}

func (in Input) database(file, schema string) func(context.Context) error {
	return func(ctx context.Context) error { return openvswitch.EnsureDatabase(ctx, in.Cluster.OVN(file), schema) }
}

// ovsLogging sends messages to standard error, which is the log file, and nowhere else.
var ovsLogging = []string{"-vconsole:info", "-vsyslog:off", "-vfile:off"}

func northboundCommand(in Input) []string {
	return append([]string{in.Programs.OVSDBServer}, append(ovsLogging[:3:3],
		flag("unixctl", in.Cluster.OVN("nb.ctl")), flag("remote", "punix:"+in.Cluster.OVN("nb.sock")), in.Cluster.OVN("nb.db"))...)
}

func southboundCommand(in Input) []string {
	listen := "pssl:" + strconv.Itoa(layout.SouthboundPort) + ":" + layout.ControlPlane4.String()
	return append([]string{in.Programs.OVSDBServer}, append(ovsLogging[:3:3],
		flag("unixctl", in.Cluster.OVN("sb.ctl")), flag("remote", "punix:"+in.Cluster.OVN("sb.sock")), flag("remote", listen),
		flag("private-key", in.Cluster.PKI("ovn-sb.key")), flag("certificate", in.Cluster.PKI("ovn-sb.crt")), flag("ca-cert", in.Cluster.PKI("ovn-ca.crt")),
		in.Cluster.OVN("sb.db"))...)
}

func northdCommand(in Input) []string {
	return append([]string{in.Programs.OVNNorthd}, append(ovsLogging[:3:3],
		flag("unixctl", in.Cluster.OVN("northd.ctl")),
		flag("ovnnb-db", "unix:"+in.Cluster.OVN("nb.sock")), flag("ovnsb-db", "unix:"+in.Cluster.OVN("sb.sock")))...)
}

func etcdCommand(in Input) []string {
	client := "https://127.0.0.1:" + strconv.Itoa(layout.EtcdPort)
	const peer = "https://127.0.0.1:2380"
	return []string{
		in.Programs.PatchbayKube, "etcd", "--name=default", flag("data-dir", in.Cluster.Path("etcd")),
		flag("listen-client-urls", client), flag("advertise-client-urls", client),
		flag("listen-peer-urls", peer), flag("initial-advertise-peer-urls", peer), "--initial-cluster=default=" + peer,
		flag("cert-file", in.Cluster.PKI("etcd.crt")), flag("key-file", in.Cluster.PKI("etcd.key")),
		"--client-cert-auth", flag("trusted-ca-file", in.Cluster.PKI("etcd-ca.crt")),
		flag("peer-cert-file", in.Cluster.PKI("etcd.crt")), flag("peer-key-file", in.Cluster.PKI("etcd.key")),
		"--peer-client-cert-auth", flag("peer-trusted-ca-file", in.Cluster.PKI("etcd-ca.crt")),
		"--listen-metrics-urls=http://127.0.0.1:2381",
		// A killed process loses nothing; only a host that loses power may, and then `down` and `up` make a new cluster.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

func apiServerCommand(in Input) []string {
	pki := in.Cluster.PKI
	return []string{
		in.Programs.PatchbayKube, "kube-apiserver",
		flag("advertise-address", layout.ControlPlane4), "--bind-address=::", flag("secure-port", layout.APIPort),
		"--allow-privileged=true", "--anonymous-auth=false", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		flag("client-ca-file", pki("ca.crt")), flag("tls-cert-file", pki("kube-apiserver.crt")), flag("tls-private-key-file", pki("kube-apiserver.key")),
		flag("etcd-servers", "https://127.0.0.1:"+strconv.Itoa(layout.EtcdPort)), flag("etcd-cafile", pki("etcd-ca.crt")),
		flag("etcd-certfile", pki("etcd-client.crt")), flag("etcd-keyfile", pki("etcd-client.key")),
		flag("kubelet-client-certificate", pki("kubelet-client.crt")), flag("kubelet-client-key", pki("kubelet-client.key")),
		flag("kubelet-certificate-authority", pki("ca.crt")), "--kubelet-preferred-address-types=InternalIP",
		flag("service-cluster-ip-range", join(in.Settings.ServiceCIDRs)),
		flag("service-account-issuer", "https://kubernetes.default.svc."+in.Settings.ClusterDomain),
		flag("service-account-key-file", pki("service-account.pub")), flag("service-account-signing-key-file", pki("service-account.key")),
		// Webhooks and aggregated API servers are reached at their endpoints: the control plane has no service network.
		"--enable-aggregator-routing=true",
		flag("proxy-client-cert-file", pki("front-proxy-client.crt")), flag("proxy-client-key-file", pki("front-proxy-client.key")),
		flag("requestheader-client-ca-file", pki("front-proxy-ca.crt")), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--profiling=false",
	}
}

// uselessControllers have nothing to do here: nodes get no address ranges and no time-to-live from Kubernetes, and no token of an
// older version exists.
var uselessControllers = []string{"node-ipam-controller", "ttl-controller", "legacy-serviceaccount-token-cleaner-controller"}

func controllerManagerCommand(in Input) []string {
	config := in.Cluster.ComponentKubeconfig("kube-controller-manager")
	return []string{
		in.Programs.PatchbayKube, "kube-controller-manager",
		flag("kubeconfig", config), flag("authentication-kubeconfig", config), flag("authorization-kubeconfig", config),
		"--bind-address=127.0.0.1", "--leader-elect=false", "--allocate-node-cidrs=false", "--use-service-account-credentials=true",
		flag("service-account-private-key-file", in.Cluster.PKI("service-account.key")), flag("root-ca-file", in.Cluster.PKI("ca.crt")),
		flag("cluster-signing-cert-file", in.Cluster.PKI("ca.crt")), flag("cluster-signing-key-file", in.Cluster.PKI("ca.key")),
		flag("requestheader-client-ca-file", in.Cluster.PKI("front-proxy-ca.crt")),
		"--controllers=*,-" + strings.Join(uselessControllers, ",-"),
		// Virtual machines move away from a dead node: notice it in half the usual time.
		"--node-monitor-period=2s", "--node-monitor-grace-period=20s",
		// Forty controllers ask for a service account each before the first one works; 20 requests a second would take 5 s.
		"--kube-api-qps=200", "--kube-api-burst=400",
		"--profiling=false",
	}
}

func schedulerCommand(in Input) []string {
	config := in.Cluster.ComponentKubeconfig("kube-scheduler")
	return []string{
		in.Programs.PatchbayKube, "kube-scheduler",
		flag("kubeconfig", config), flag("authentication-kubeconfig", config), flag("authorization-kubeconfig", config),
		"--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400",
	}
}

func controllerCommand(in Input) []string {
	return []string{
		in.Programs.Patchbay, "controller", "--settings", in.Cluster.SettingsFile(), "--kubeconfig", in.Cluster.ComponentKubeconfig("controller"),
		"--nb", "unix:" + in.Cluster.OVN("nb.sock"), "--sb", "unix:" + in.Cluster.OVN("sb.sock"),
		"--listen", netip.AddrPortFrom(layout.ControlPlane4, layout.ControllerPort).String(), "--tls-dir", in.Cluster.PKI("controller"),
	}
}

const dnsPort = 53

func dnsCommand(in Input) []string {
	return []string{
		in.Programs.Patchbay, "dns", "--settings", in.Cluster.SettingsFile(), "--kubeconfig", in.Cluster.ComponentKubeconfig("dns"),
		"--listen", net.JoinHostPort(layout.ControlPlane4.String(), strconv.Itoa(dnsPort)),
		"--listen", net.JoinHostPort(layout.ControlPlane6.String(), strconv.Itoa(dnsPort)),
	}
}

func join[T interface{ String() string }](list []T) string {
	texts := make([]string, 0, len(list))
	for _, e := range list {
		texts = append(texts, e.String())
	}
	return strings.Join(texts, ",")
}
