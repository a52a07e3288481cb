package chapter9

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/podnetworks"
)

// tenantManifest is a primary network of both families whose machines keep their addresses.
const tenantManifest = `
apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: tenant-net}
spec:
  topology: Layer2
  layer2:
    role: Primary
    subnets: ["10.20.0.0/16", "fd00:20::/64"]
    ipam: {lifecycle: Persistent}
`

// tenantVM is a machine on its namespace's primary network.
const tenantVM = `
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: {{.name}}}
spec:
  runStrategy: Always
  template:
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: {{.node}}}
      domain:
        memory: {guest: 128Mi}
        devices:
          disks:
            - {name: root, disk: {bus: virtio}}
            - {name: seed, disk: {bus: virtio}}
          interfaces: [{name: tenant, binding: {name: l2bridge}}]
      networks: [{name: tenant, pod: {}}]
      volumes:
        - {name: root, containerDisk: {image: "patchbay.io/guest/tiny:latest"}}
        - name: seed
          cloudInitNoCloud:
            userData: |
              #cloud-config
              user: cloud-user
              ssh_authorized_keys: ["{{.key}}"]
            networkData: "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    dhcp6: true\n"
`

// dataNamespace is a namespace with a primary network of its own.
func dataNamespace(t *testing.T) string {
	t.Helper()
	ns := tenantNamespace(t)
	cluster.Apply(t, ns, tenantManifest, nil)
	return ns
}

// tenantPort is a pod's connection to its primary network, by its annotation.
func tenantPort(t *testing.T, pod *corev1.Pod) podnetworks.Network {
	t.Helper()
	networks, err := podnetworks.ParsePod(pod.Annotations)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if n.Role == podnetworks.Primary {
			return n
		}
	}
	t.Fatalf("pod %s is connected so: %s", pod.Name, pod.Annotations[podnetworks.PodAnnotation])
	return podnetworks.Network{}
}

// tenantAddresses are a pod's addresses on its primary network: IPv4 and IPv6.
func tenantAddresses(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	var out []string
	for _, ip := range tenantPort(t, pod).IPs {
		out = append(out, ip.Addr().String())
	}
	if len(out) != 2 {
		t.Fatalf("pod %s is connected so: %s", pod.Name, pod.Annotations[podnetworks.PodAnnotation])
	}
	return out
}

// machineAddresses waits for a machine and returns its addresses on the primary network.
func machineAddresses(t *testing.T, ns, name string) []string {
	t.Helper()
	return tenantAddresses(t, cluster.LauncherPod(t, cluster.Running(t, ns, name)))
}

// machineMAC waits for a machine and returns its MAC address on the primary network.
func machineMAC(t *testing.T, ns, name string) string {
	t.Helper()
	return tenantPort(t, cluster.LauncherPod(t, cluster.Running(t, ns, name))).MAC.String()
}

// answersFrom pings from a guest until an answer comes: the first packets may be lost while the nodes find each other.
func answersFrom(t *testing.T, g interface{ Try(string) (string, error) }, what, to string) {
	t.Helper()
	family := "-4"
	if strings.Contains(to, ":") {
		family = "-6"
	}
	cluster.Eventually(t, soon, what+" reaches "+to, func() error {
		_, err := g.Try(fmt.Sprintf("ping %s -c1 -W2 %s", family, to))
		return err
	})
}

// Try lets a toolbox stand where a guest does.
func (b toolbox) Try(command string) (string, error) { return b.run(command) }

// 9.3: what passes on a primary network of two nodes, and how long addresses last.
func TestPrimaryNetworkData(t *testing.T) {
	ns := dataNamespace(t)
	user := cluster.NewClient(t)
	key, public := user.Key(t, "id_tenant")
	cluster.Apply(t, ns, tenantVM, map[string]string{"name": "one", "node": "node-1", "key": public})
	cluster.Apply(t, ns, tenantVM, map[string]string{"name": "two", "node": "node-2", "key": public})
	box := pod(t, ns, "box", "node-2")
	one, two := machineAddresses(t, ns, "one"), machineAddresses(t, ns, "two")
	inBox := tenantAddresses(t, cluster.PodReady(t, ns, "box"))
	first := cluster.Guest(t, ns, "one")

	t.Run("9.3-C1 the network replaces the pod network", func(t *testing.T) {
		first.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+one[0]+"/16"))
		first.Eventually(cluster, boot, "ip -6 -o addr show dev eth0 scope global", contains("inet6 "+one[1]+"/"))
		first.Eventually(cluster, soon, "ip route show default", contains("via 10.20.0.1 dev eth0"))
		first.Eventually(cluster, soon, "ip -6 route show default", contains("via fe80::858:aff:fe14:1 dev eth0"))
		first.Eventually(cluster, soon, "cat /etc/resolv.conf", contains("nameserver 10.96.0.10"))
		if name := first.Run("hostname"); name != "one" {
			t.Errorf("the guest is called %q", name)
		}
	})
	t.Run("9.3-C5 machines on different nodes connect", func(t *testing.T) {
		for _, to := range slices.Concat(two, inBox, []string{"10.20.0.1", "fd00:20::1"}) {
			answersFrom(t, first, "machine one", to)
		}
		for _, to := range slices.Concat(one, two) {
			answersFrom(t, box, "the pod", to)
		}
	})
	t.Run("9.3-C5 the largest packet passes", func(t *testing.T) {
		mtu := first.Run("cat /sys/class/net/eth0/mtu")
		var n int
		if _, err := fmt.Sscan(mtu, &n); err != nil {
			t.Fatal(err)
		}
		first.Run(fmt.Sprintf("ping -4 -c1 -W5 -s %d %s", n-28, two[0]))
		first.Run(fmt.Sprintf("ping -6 -c1 -W5 -s %d %s", n-48, two[1]))
	})
	testTenantReach(t, ns, first, box, one)
	testTenantNames(t, ns, first, box, two)
	testTenantServices(t, ns, first, box)
	testTenantWishes(t, ns)
	testTenantProbes(t, ns)
	testTenantAccess(t, user, ns, key)
	testTenantPolicy(t, user, ns, key, first, box, one, two)
	t.Run("9.3.2.2-C8 claims hold the addresses", func(t *testing.T) {
		var claim ipamclaimsv1alpha1.IPAMClaim
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "one.tenant"}, &claim); err != nil {
			t.Fatal(err)
		}
		if got, want := claim.Status.IPs, []string{one[0] + "/16", one[1] + "/64"}; !slices.Equal(got, want) {
			t.Errorf("the claim has %v, want %v", got, want)
		}
	})
	t.Run("9.3.2.2-C8 same addresses after a stop and a start, on another node", func(t *testing.T) {
		mac := machineMAC(t, ns, "two")
		power(t, ns, "two", "Halted")
		gone(t, ns, "two")
		other := pod(t, ns, "other", "node-1") // takes the next free address
		if got := tenantAddresses(t, cluster.PodReady(t, ns, other.name)); got[0] == two[0] || got[1] == two[1] {
			t.Errorf("a pod has %v, which the stopped machine keeps", got)
		}
		if _, err := cluster.Kubectl(t.Context(), "patch", "vm", "two", "-n", ns, "--type=merge", "-p",
			`{"spec":{"runStrategy":"Always","template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node-1"}}}}}`); err != nil {
			t.Fatal(err)
		}
		sameAgain(t, ns, "two", two, mac)
		if node := cluster.Running(t, ns, "two").Status.NodeName; node != "node-1" {
			t.Errorf("the machine is on %s", node)
		}
		second := cluster.Guest(t, ns, "two")
		second.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+two[0]+"/16"))
		answersFrom(t, first, "machine one", two[0])
	})
	t.Run("9.3.2.2-C8 same addresses after its pod is deleted", func(t *testing.T) {
		before, mac := cluster.Running(t, ns, "two"), machineMAC(t, ns, "two")
		if _, err := cluster.Kubectl(t.Context(), "delete", "pod", "-n", ns, "--grace-period=0", "--force", cluster.LauncherPod(t, before).Name); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, boot, "another instance takes its place", func() error {
			var now virtv1.VirtualMachineInstance
			err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "two"}, &now)
			if err == nil && now.UID == before.UID {
				err = errors.New("it is the same instance")
			}
			return err
		})
		sameAgain(t, ns, "two", two, mac)
		second := cluster.Guest(t, ns, "two")
		second.Eventually(cluster, boot, "ip -4 -o addr show dev eth0", contains("inet "+two[0]+"/16"))
		answersFrom(t, first, "machine one", two[0])
	})
	t.Run("9.3.2.2-C8 addresses survive the controller", func(t *testing.T) {
		killController(t)
		first = cluster.Guest(t, ns, "one") // its console went through the controller
		answersFrom(t, first, "machine one", two[0])
		late := pod(t, ns, "late", "node-1")
		got := tenantAddresses(t, cluster.PodReady(t, ns, late.name))
		for _, taken := range [][]string{one, two, inBox} {
			if got[0] == taken[0] || got[1] == taken[1] {
				t.Errorf("a pod has %v, which belongs to somebody", got)
			}
		}
		if now := machineAddresses(t, ns, "one"); !slices.Equal(now, one) {
			t.Errorf("the machine had %v and has %v", one, now)
		}
		for _, to := range slices.Concat(one, two) {
			answersFrom(t, late, "the new pod", to)
		}
	})
}

// sameAgain waits for a machine that started again and compares what it has with what it had.
func sameAgain(t *testing.T, ns, name string, ips []string, mac string) {
	t.Helper()
	if got := machineAddresses(t, ns, name); !slices.Equal(got, ips) {
		t.Errorf("the machine had %v and has %v", ips, got)
	}
	if got := machineMAC(t, ns, name); got != mac {
		t.Errorf("the machine had the MAC address %s and has %s", mac, got)
	}
}

// power sets a machine's run strategy.
func power(t *testing.T, ns, name, strategy string) {
	t.Helper()
	if _, err := cluster.Kubectl(t.Context(), "patch", "vm", name, "-n", ns, "--type=merge", "-p", `{"spec":{"runStrategy":"`+strategy+`"}}`); err != nil {
		t.Fatal(err)
	}
}

// gone waits until a machine is off.
func gone(t *testing.T, ns, name string) {
	t.Helper()
	cluster.Eventually(t, boot, "machine "+name+" is off", func() error {
		err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: name}, &virtv1.VirtualMachineInstance{})
		if client.IgnoreNotFound(err) == nil && err != nil {
			return nil
		}
		return fmt.Errorf("the instance is there (%v)", err)
	})
}

// killController kills the controller's process and waits until another one leads.
func killController(t *testing.T) {
	t.Helper()
	cluster.Kill(t, boot, "controller")
	cluster.Eventually(t, boot, "the API server reaches the controller", func() error {
		_, err := cluster.Kubectl(t.Context(), "get", "--raw", "/apis/subresources.kubevirt.io/v1")
		return err
	})
}
