package chapter9

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/vmctl"
	"patchbay/test/local"
)

// lan makes a layer 2 network without addresses of its own, and a pod on it that is its DHCP server.
func lan(t *testing.T, ns string) toolbox {
	t.Helper()
	cluster.Apply(t, ns, flatManifest, map[string]string{"name": "lan", "namespace": ns})
	box := podOn(t, ns, "peer", "node-2", "lan")
	box.must("ip addr add 10.30.0.1/24 dev net1 && dnsmasq --conf-file=/dev/null --user=root --group=root --pid-file= --port=0 " +
		"--interface=net1 --bind-interfaces --dhcp-range=10.30.0.50,10.30.0.99,1h --dhcp-leasefile=/tmp/leases")
	return box
}

// through is ssh's way from a pod to an address that the pod reaches.
func through(box toolbox) string {
	return fmt.Sprintf("ProxyCommand=%s kubectl --name %s -- exec -i -n %s %s -- nc %%h %%p",
		filepath.Join(cluster.Root(), "bin", "patchbay"), cluster.Name, box.namespace, box.name)
}

// plainSSH runs a command in a guest with the ssh of this host.
func plainSSH(t *testing.T, user *local.Client, key, target, command string, options ...string) (string, error) {
	t.Helper()
	args := append(user.SSHOptions(), "-i", key)
	for _, option := range options {
		args = append(args, "-o", option)
	}
	out, err := user.Run(t.Context(), "", "ssh", append(args, target, command)...)
	return strings.TrimSpace(out), err
}

// patchbayVM runs a command of `patchbay vm` about machines of a namespace.
func patchbayVM(t *testing.T, ns string, args ...string) (string, error) {
	t.Helper()
	return cluster.Patchbay(t.Context(), append([]string{"vm", "--name", cluster.Name, "-n", ns}, args...)...)
}

// addressesByCommand is what `patchbay vm ip` prints of a machine.
func addressesByCommand(t *testing.T, ns, name string) []vmctl.Address {
	t.Helper()
	out, err := patchbayVM(t, ns, "ip", name, "--output", "json")
	var all []vmctl.Address
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return all
}

// checkSecondary reaches example-vm at its address on a secondary network, which a DHCP server of that network gave.
func checkSecondary(t *testing.T, user *local.Client, ns string, box toolbox, key string) (address string) {
	t.Run("SSH.7-C1 network, attachment definition and DHCP server", func(t *testing.T) {
		out, err := patchbayVM(t, ns, "plug", "example-vm", "--network", "lan", "--output", "json")
		if err != nil || !strings.Contains(out, `"state": "plugged"`) {
			t.Fatalf("%q, %v", out, err)
		}
		address = addressesOf(t, ns, "example-vm", "lan", "10.30.0.").IP
		mac := cluster.Running(t, ns, "example-vm").Status.Interfaces[1].MAC
		if leases := box.must("cat /tmp/leases"); !strings.Contains(leases, mac+" "+address+" ") {
			t.Errorf("the DHCP server's leases are %q, want %s for %s", leases, address, mac)
		}
	})
	t.Run("SSH.7-C2 the network is the overlay's layer2", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "net-attach-def", "lan", "-n", ns, "-o", "jsonpath={.spec.config}")
		if err != nil || !strings.Contains(out, `"type": "ovn-k8s-cni-overlay", "topology": "layer2"`) {
			t.Errorf("%v %s", err, out)
		}
	})
	t.Run("what the DHCP server granted is heard on the network", func(t *testing.T) {
		cluster.Eventually(t, soon, "the lease among the observed addresses", func() error {
			all := addressesByCommand(t, ns, "example-vm")
			if len(all) < 2 || all[1].Said == nil || !slices.Contains(all[1].Said.Observed, address) {
				return fmt.Errorf("addresses %+v", all)
			}
			return nil
		})
	})
	t.Run("SSH.7-K1 describing shows the interfaces", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "describe", "vmi", "example-vm", "-n", ns)
		if err != nil || !strings.Contains(out, "Interfaces:") || !strings.Contains(out, "Ip Address:          "+address) {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("SSH.7-K2 ssh to the address", func(t *testing.T) {
		out, err := plainSSH(t, user, key, "cloud-user@"+address, "hostname", through(box))
		if err != nil || out != "example-vm" {
			t.Errorf("%q, %v", out, err)
		}
	})
	return address
}

// checkFourWays goes every way to example-vm and sees that they lead to one guest.
func checkFourWays(t *testing.T, user *local.Client, ns string, box toolbox, key, config, address string) {
	const ask = "cat /proc/sys/kernel/random/boot_id"
	service := &corev1.Service{}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "example-nodeport"}, service); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for way, connect := range map[string]func() (string, error){
		"virtctl ssh": func() (string, error) { return sshTo(t.Context(), user, ns, key, "cloud-user@vm/example-vm", ask) },
		"virtctl port-forward in the ssh config": func() (string, error) {
			args := append(user.SSHOptions()[2:], "-F", config, "-i", key, "cloud-user@vm/example-vm/"+ns, ask)
			out, err := user.Run(t.Context(), "", "ssh", args...)
			return strings.TrimSpace(out), err
		},
		"a Service": func() (string, error) {
			return plainSSH(t, user, key, "cloud-user@"+service.Spec.ClusterIP, ask, through(box))
		},
		"the secondary network": func() (string, error) {
			return plainSSH(t, user, key, "cloud-user@"+address, ask, through(box))
		},
	} {
		id, err := connect()
		if err != nil || len(id) != 36 {
			t.Errorf("by %s: %q, %v", way, id, err)
		}
		ids[id] = true
	}
	if len(ids) != 1 {
		t.Errorf("they lead to several guests: %v", ids)
	}
}

// sshConfig writes the documented lines for ~/.ssh/config.
func sshConfig(t *testing.T, user *local.Client) string {
	t.Helper()
	file := filepath.Join(user.Home, "ssh_config")
	text := fmt.Sprintf("Host vm/*\n  ProxyCommand %s port-forward --stdio=true %%h %%p\n", user.Virtctl)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
