package chapter9

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"patchbay/test/local"
)

// testTenantReach checks what a machine on a primary network sees of its neighbours and of the world.
func testTenantReach(t *testing.T, ns string, guest *local.Guest, box toolbox, ips []string) {
	t.Run("9.1.3-C1 machines reach the API server, the cluster's DNS and the outside", func(t *testing.T) {
		guest.Eventually(cluster, soon, "nslookup kubernetes.default.svc.cluster.local", contains("10.96.0.1"))
		guest.Eventually(cluster, soon, "nc -w 3 10.96.0.1 443 </dev/null && echo open", contains("open"))
		for _, outside := range []string{"172.30.0.1", "fd00:172:30::1"} {
			answersFrom(t, guest, "machine one", outside)
		}
	})
	t.Run("9.3.3-C2 nothing stands between the machine and the network's switch", func(t *testing.T) {
		mac := cluster.Running(t, ns, "one").Status.Interfaces[0].MAC
		if inside := guest.Run("cat /sys/class/net/eth0/address"); inside != mac {
			t.Errorf("the guest has the MAC address %s, its status says %s", inside, mac)
		}
		for _, ip := range ips {
			// Linux begins at 64; over IPv6 at what the network's router advertises.
			if out := box.must("ping -c1 -W3 " + ip); !strings.Contains(out, "ttl=64 ") && !strings.Contains(out, "ttl=255 ") {
				t.Errorf("somebody forwards what comes from %s: %s", ip, out)
			}
			if out := box.must("ip neigh show " + ip); !strings.Contains(out, "lladdr "+mac) {
				t.Errorf("the neighbour %s is %q, want %s", ip, out, mac)
			}
		}
	})
	t.Run("9.3-C5 the gateway is the same on every node", func(t *testing.T) {
		const gateway = "lladdr 0a:58:0a:14:00:01"
		for what, try := range map[string]func(string) (string, error){"node-1": guest.Try, "node-2": box.Try} {
			for _, ip := range []string{"10.20.0.1", "fd00:20::1"} {
				if out, err := try("ping -c1 -W3 " + ip + " >/dev/null; ip neigh show " + ip); err != nil || !strings.Contains(out, gateway) {
					t.Errorf("on %s the gateway %s is %q (%v), want %s", what, ip, out, err, gateway)
				}
			}
		}
	})
}

const headlessManifest = `
apiVersion: v1
kind: Service
metadata: {name: {{.name}}}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {vm.kubevirt.io/name: {{.selects}}}
  ports: [{name: http, port: 80}]
`

// testTenantNames checks that a headless service leads to the addresses that machines have on the network.
func testTenantNames(t *testing.T, ns string, guest *local.Guest, box toolbox, two []string) {
	t.Run("9.3-C9 headless services", func(t *testing.T) {
		cluster.Apply(t, ns, headlessManifest, map[string]string{"name": "direct", "selects": "two"})
		name := "direct." + ns + ".svc.cluster.local"
		for _, ip := range two {
			guest.Eventually(cluster, soon, "nslookup "+name, contains(ip))
		}
		if out := guest.Run("nslookup " + name); strings.Contains(out, "10.128.") || strings.Contains(out, "fd00:10:128:") {
			t.Errorf("the name also leads to the default network: %s", out)
		}
		cluster.Eventually(t, soon, "the page of machine two by its service's name", func() error {
			page, err := box.run("curl -sfm5 http://" + name + "/hostname")
			if err == nil && page != "two" {
				err = fmt.Errorf("the page says %q", page)
			}
			return err
		})
	})
}

// testTenantAccess checks that the API's tunnels lead to machines on a primary network, on whichever node they are.
func testTenantAccess(t *testing.T, user *local.Client, ns, key string) {
	t.Run("9.3-C7 virtctl ssh", func(t *testing.T) {
		for _, name := range []string{"one", "two"} {
			awaitSSH(t, user, ns, key, "cloud-user@vm/"+name)
			out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vmi/"+name, "hostname")
			if err != nil || out != name {
				t.Errorf("ssh to %s: %q, %v", name, out, err)
			}
		}
		t.Run("SSH.0-C5 the reference's limit is none here", func(t *testing.T) {
			out, err := sshTo(t.Context(), user, ns, key, "cloud-user@vm/one", "ip -4 -o addr show eth0")
			if ip := ipv4(cluster.Running(t, ns, "one").Status.Interfaces[0].IPs); err != nil || !strings.Contains(out, "inet "+ip+"/") {
				t.Errorf("the guest's address is %q, %v; want %s on the primary network", out, err, ip)
			}
		})
	})
	t.Run("9.3-C8 port-forward", func(t *testing.T) {
		web := localPort(t)
		background(t, user, "virtctl", "port-forward", "vm/two/"+ns, web+":80")
		cluster.Eventually(t, soon, "the page of machine two through the tunnel", func() error {
			response, err := http.Get("http://127.0.0.1:" + web + "/hostname")
			if err != nil {
				return err
			}
			page, err := io.ReadAll(response.Body)
			if err = errors.Join(err, response.Body.Close()); err == nil && string(page) != "two" {
				err = fmt.Errorf("the page says %q", page)
			}
			return err
		})
	})
}
