package chapter9

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// podMTU follows from fabricMTU.
const podMTU = 9000

// 9.2.3: jumbo frames on the default pod network. The guest reads its MTU from the device (virtio) and from DHCP.
func TestJumboFrames(t *testing.T) {
	ns := cluster.Namespace(t)
	machine{name: "one", node: "node-1"}.apply(t, ns)
	machine{name: "two", node: "node-2"}.apply(t, ns)
	// a guest that ignores DHCP's MTU still has the device's
	machine{name: "device", node: "node-2", networkData: "version: 2\nethernets:\n  eth0:\n    addresses: [ 10.0.2.2/24 ]\n    gateway4: 10.0.2.1\n"}.apply(t, ns)
	one, two := cluster.Guest(t, ns, "one"), cluster.Guest(t, ns, "two")

	t.Run("9.2.3-C2 the VM takes the cluster's MTU", func(t *testing.T) {
		one.Eventually(cluster, boot, "cat /sys/class/net/eth0/mtu", func(s string) bool { return s == fmt.Sprint(podMTU) })
	})
	t.Run("9.2.3-C3 the virtio device carries the MTU", func(t *testing.T) {
		device := cluster.Guest(t, ns, "device")
		if mtu := device.Run("cat /sys/class/net/eth0/mtu"); mtu != fmt.Sprint(podMTU) {
			t.Errorf("without DHCP the MTU is %s, want %d", mtu, podMTU)
		}
	})
	t.Run("9.2.3-C4 the DHCP reply carries the MTU", func(t *testing.T) {
		var state struct {
			Interfaces []struct {
				Name  string
				DHCP4 struct{ Options map[string]string }
			}
		}
		if err := json.Unmarshal([]byte(one.Run("curl -sf http://localhost/state")), &state); err != nil {
			t.Fatal(err)
		}
		const interfaceMTU = "26" // DHCP option
		if len(state.Interfaces) != 1 || state.Interfaces[0].DHCP4.Options[interfaceMTU] != fmt.Sprint(podMTU) {
			t.Errorf("the lease lacks the MTU %d: %+v", podMTU, state.Interfaces)
		}
	})
	t.Run("9.2.3-C1 jumbo frames pass unfragmented", func(t *testing.T) {
		two.Eventually(cluster, boot, "ip -4 -o addr show eth0", contains("inet "))
		ips := cluster.Running(t, ns, "two").Status.Interfaces[0].IPs
		for _, ip := range ips {
			header := 28 // IPv4 and ICMP
			if strings.Contains(ip, ":") {
				header = 48
			}
			fragments := "awk '/^Ip:/ {n++; if (n == 2) print $(NF-2)+$NF}' /proc/net/snmp; awk '/Ip6FragCreates/ {print $2}' /proc/net/snmp6"
			before := one.Run(fragments)
			one.Eventually(cluster, boot, fmt.Sprintf("ping -c2 -W3 -s %d %s", podMTU-header, ip), contains(" 0% packet loss"))
			if after := one.Run(fragments); after != before {
				t.Errorf("to %s the guest made fragments: counters went from %q to %q", ip, before, after)
			}
		}
	})
}
