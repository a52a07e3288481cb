package guest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/crypto/ssh"

	"patchbay/guest/guestd/nic"
)

// Limits are far above what is usual (2 to 4 s to a login): tests share the machine.
const (
	bootLimit = 60 * time.Second
	stepLimit = 20 * time.Second
)

// TestTinyKernelBoot boots kernel and first file system without any disk.
func TestTinyKernelBoot(t *testing.T) {
	dir := filepath.Join(guests, "tiny-kernel/boot")
	m := boot(t, nil, "-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"),
		"-append", "quiet console=ttyS0 net.ifnames=0 autologin=root")
	m.waitFor("root@tiny", bootLimit)
	t.Logf("shell after %.1f s", time.Since(m.started).Seconds())
}

// TestTinyNetwork boots tiny from disk without a seed on a network that offers everything.
func TestTinyNetwork(t *testing.T) {
	l := newLab(t)
	device, first := l.tap("10.77.0.1/24", "fd77::1/64")
	spareDevice, spare := l.tap("10.78.0.1/24")
	l.serveDHCP4(device, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.20"), options4()...)
	l.serveDHCP4(spareDevice, netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.20"), dhcpv4.WithNetmask(net.CIDRMask(24, 32)))
	l.serveDHCP6(device, netip.MustParseAddr("fd77::1234"))
	l.advertise(device, netip.MustParsePrefix("fd77::/64"))
	m := boot(t, []nicOf{{"52:54:00:00:00:01", first}, {"", spare}}, disk(t, "tiny.qcow2")...)
	t.Logf("login after %.1f s", m.waitFor("login:", bootLimit).Seconds())

	t.Run("agent", func(t *testing.T) {
		m.agent("guest-ping", map[string]any{}, nil, stepLimit)
		m.hasAddresses("eth0", stepLimit, "10.77.0.20/24", "fd77::1234/128", "fd77::5054:ff:fe00:1/64")
		var osinfo struct{ ID string }
		m.agent("guest-get-osinfo", map[string]any{}, &osinfo, stepLimit)
		if osinfo.ID != "patchbay-tiny" {
			t.Errorf("the agent says the system is %q", osinfo.ID)
		}
	})
	t.Run("options", func(t *testing.T) { checkOptions(t, l) })
	t.Run("page", func(t *testing.T) {
		for _, address := range []string{"10.77.0.20:80", "[fd77::1234]:80"} {
			page := l.get(t, address, "/")
			for _, want := range []string{"hostname: from-dhcp\n", "address: eth0 10.77.0.20/24\n", "server: " + address, "client: "} {
				if !strings.Contains(page, want) {
					t.Errorf("the page on %s lacks %q:\n%s", address, want, page)
				}
			}
		}
		if got := l.get(t, "10.77.0.20:80", "/healthz"); got != "ok\n" {
			t.Errorf("/healthz says %q", got)
		}
		if got := l.get(t, "10.77.0.20:80", "/bytes/1000000"); len(got) != 1000000 {
			t.Errorf("/bytes/1000000 sends %d bytes", len(got))
		}
	})
	t.Run("echo", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			checkEcho(t, l, network, "10.77.0.20:7")
			checkEcho(t, l, network, "[fd77::1234]:7")
		}
	})
	t.Run("ssh", func(t *testing.T) {
		out := l.run(t, "patchbay", "10.77.0.20:22", ssh.Password("patchbay"), "ip route; ping -c1 -W2 10.77.0.1; cat /etc/resolv.conf", stepLimit)
		for _, want := range []string{"default via 10.77.0.1 dev eth0", "192.168.99.0/24 via 10.77.0.7", " 0% packet loss", "nameserver 10.77.0.53", "nameserver fd77::35", "tenant.svc.cluster.local"} {
			if !strings.Contains(out, want) {
				t.Errorf("the guest's own view lacks %q:\n%s", want, out)
			}
		}
		if strings.Contains(out, "10.77.0.99") {
			t.Errorf("the router option is used although classless routes are given:\n%s", out)
		}
	})
	t.Run("plug", func(t *testing.T) {
		start := time.Now()
		m.qmp("netdev_add", map[string]any{"type": "tap", "id": "hot", "fd": "4"})
		m.qmp("device_add", map[string]any{"driver": "virtio-net-pci", "netdev": "hot", "id": "hotnic", "bus": "spare", "mac": "52:54:00:00:00:02"})
		m.hasAddresses("eth1", stepLimit, "10.78.0.20/24")
		t.Logf("plugged NIC has its address after %.1f s", time.Since(start).Seconds())
		m.qmp("device_del", map[string]any{"id": "hotnic"})
		within(t, stepLimit, "eth1 is gone", func() error {
			if have := m.addresses("eth1"); have != nil {
				return fmt.Errorf("still has %v", have)
			}
			return nil
		})
	})
	t.Run("password by agent", func(t *testing.T) {
		m.agent("guest-set-user-password", map[string]any{"username": "patchbay", "password": "bmV3LXNlY3JldA==", "crypted": false}, nil, stepLimit)
		l.run(t, "patchbay", "10.77.0.20:22", ssh.Password("new-secret"), "true", stepLimit)
	})
	t.Run("keys by agent", func(t *testing.T) {
		signer, public := newKey(t)
		m.agent("guest-ssh-add-authorized-keys", map[string]any{"username": "patchbay", "keys": []string{public}, "reset": true}, nil, stepLimit)
		l.run(t, "patchbay", "10.77.0.20:22", ssh.PublicKeys(signer), "true", stepLimit)
	})
	t.Run("power button", func(t *testing.T) {
		m.qmp("system_powerdown", map[string]any{})
		select {
		case <-m.exited:
		case <-time.After(stepLimit):
			t.Fatal("the guest does not shut down when its power button is pressed")
		}
	})
}

// checkOptions compares what the guest says it was given with what was sent.
func checkOptions(t *testing.T, l *lab) {
	var state struct{ Interfaces []nic.State }
	if err := json.Unmarshal([]byte(l.get(t, "10.77.0.20:80", "/state")), &state); err != nil {
		t.Fatal(err)
	}
	eth0 := state.Interfaces[0]
	if eth0.MTU != 1400 {
		t.Errorf("MTU is %d, want that of option 26, 1400", eth0.MTU)
	}
	for option, want := range map[string]string{
		"1": "255.255.255.0", "6": "10.77.0.53", "12": "from-dhcp", "15": "example.test", "26": "1400",
	} {
		if eth0.DHCP4 == nil || eth0.DHCP4.Options[option] != want {
			t.Errorf("option %s: want %s, have %+v", option, want, eth0.DHCP4)
		}
	}
	if eth0.Router == nil || !eth0.Router.Managed || !slices.Equal(eth0.Router.DNS, []netip.Addr{netip.MustParseAddr("fd77::35")}) {
		t.Errorf("router advertisement: have %+v", eth0.Router)
	}
	if eth0.DHCP6 == nil || eth0.DHCP6.Address != netip.MustParsePrefix("fd77::1234/128") {
		t.Errorf("DHCPv6: have %+v", eth0.DHCP6)
	}
}

// get fetches a page from the lab's side.
func (l *lab) get(t *testing.T, address, path string) string {
	t.Helper()
	var body []byte
	within(t, stepLimit, "http://"+address+path, func() error {
		c, err := l.dial("tcp", address, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}, Timeout: 10 * time.Second}
		answer, err := client.Get("http://" + address + path)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		body, err = io.ReadAll(answer.Body)
		return err
	})
	return string(body)
}

func checkEcho(t *testing.T, l *lab, network, address string) {
	t.Helper()
	within(t, stepLimit, "echo by "+network+" from "+address, func() error {
		c, err := l.dial(network, address, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second)) //nolint:errcheck // sockets have deadlines
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		answer := make([]byte, 5)
		if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "hello" {
			return fmt.Errorf("answer %q, %w", answer, err)
		}
		return nil
	})
}

// seedCases are seeds with the addresses that a guest must end up with. MACs are 52:54:00:00:00:01 and …:02.
var seedCases = []struct {
	name  string
	label string
	files func(key string) map[string]string
	eth0  string // name of the first NIC
	want0 []string
	want1 []string
	ssh   string // address to log in at
	check map[string]string
}{
	{
		name: "NoCloud v2", label: "cidata", eth0: "lan0",
		files: func(key string) map[string]string {
			return map[string]string{
				"meta-data": `{"instance-id":"i-1","local-hostname":"seeded","public-keys":{"0":"` + key + `"}}`,
				"user-data": "#cloud-config\nwrite_files:\n- {path: /etc/mark, content: written, permissions: '0600', owner: 'patchbay:patchbay'}\nruncmd:\n- [sh, -c, 'echo ran > /etc/ran']\n- echo again >> /etc/ran\n",
				"network-config": "version: 2\nethernets:\n  id0:\n    match: {macaddress: '52:54:00:00:00:01'}\n    set-name: lan0\n    mtu: 1300\n    addresses: [10.77.0.30/24, 'fd77::30/64']\n" +
					"    gateway4: 10.77.0.1\n    gateway6: fd77::1\n    routes: [{to: 192.168.5.0/24, via: 10.77.0.5}]\n    nameservers: {addresses: [10.77.0.54], search: [seed.test]}\n" +
					"  eth1:\n    dhcp4: true\n",
			}
		},
		want0: []string{"10.77.0.30/24", "fd77::30/64"}, want1: []string{"10.78.0.20/24"}, ssh: "10.77.0.30:22",
		check: map[string]string{
			"hostname":                            "seeded",
			"cat /etc/mark; stat -c %a /etc/mark": "written600",
			"cat /etc/ran":                        "ran\nagain",
			"ip route show default":               "default via 10.77.0.1 dev lan0",
			"ip -6 route show default":            "default via fd77::1 dev lan0",
			"ip route":                            "192.168.5.0/24 via 10.77.0.5 dev lan0",
			"ip link show lan0":                   "mtu 1300",
			"cat /etc/resolv.conf":                "search seed.test\nnameserver 10.77.0.54",
		},
	},
	{
		name: "NoCloud v1", label: "cidata", eth0: "eth0",
		files: func(key string) map[string]string {
			return map[string]string{
				"meta-data": "instance-id: i-2\nlocal-hostname: seeded.example.test\n",
				"user-data": "#cloud-config\nssh_authorized_keys: ['" + key + "']\nhostname: by-user-data\n",
				"network-config": "version: 1\nconfig:\n- type: physical\n  name: eth0\n  mac_address: '52:54:00:00:00:01'\n  mtu: 1350\n  subnets:\n" +
					"  - {type: static, address: 10.77.0.31, netmask: 255.255.255.0, gateway: 10.77.0.1, routes: [{network: 192.168.6.0, netmask: 255.255.255.0, gateway: 10.77.0.6}]}\n" +
					"  - {type: static6, address: 'fd77::31/64', gateway: 'fd77::1'}\n- type: physical\n  name: eth1\n  subnets: [{type: dhcp4}]\n- {type: nameserver, address: [10.77.0.55], search: [v1.test]}\n",
			}
		},
		want0: []string{"10.77.0.31/24", "fd77::31/64"}, want1: []string{"10.78.0.20/24"}, ssh: "10.77.0.31:22",
		check: map[string]string{
			"hostname":             "by-user-data",
			"ip route":             "192.168.6.0/24 via 10.77.0.6 dev eth0",
			"ip link show eth0":    "mtu 1350",
			"cat /etc/resolv.conf": "search v1.test\nnameserver 10.77.0.55",
		},
	},
	{
		name: "ConfigDrive OpenStack", label: "config-2", eth0: "eth0",
		files: func(key string) map[string]string {
			return map[string]string{
				"openstack/latest/meta_data.json": `{"instance_id":"vm.ns","hostname":"driven","uuid":"vm.ns","public_keys":{"0":"` + key + `"}}`,
				"openstack/latest/user_data":      "#!/bin/sh\necho script > /etc/ran\n",
				"openstack/latest/network_data.json": `{"links":[{"id":"l0","ethernet_mac_address":"52:54:00:00:00:01","mtu":1320},{"id":"l1","ethernet_mac_address":"52:54:00:00:00:02"}],
					"networks":[{"link":"l0","type":"ipv4","ip_address":"10.77.0.32","netmask":"255.255.255.0","routes":[{"network":"0.0.0.0","netmask":"0.0.0.0","gateway":"10.77.0.1"}]},
					{"link":"l1","type":"ipv4_dhcp"}],"services":[{"type":"dns","address":"10.77.0.56"}]}`,
			}
		},
		want0: []string{"10.77.0.32/24"}, want1: []string{"10.78.0.20/24"}, ssh: "10.77.0.32:22",
		check: map[string]string{
			"hostname":              "driven",
			"cat /etc/ran":          "script",
			"ip route show default": "default via 10.77.0.1 dev eth0",
			"ip link show eth0":     "mtu 1320",
			"cat /etc/resolv.conf":  "nameserver 10.77.0.56",
		},
	},
}

func TestTinySeeds(t *testing.T) {
	for _, c := range seedCases {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			signer, public := newKey(t)
			_, first := l.tap("10.77.0.1/24", "fd77::1/64")
			device, second := l.tap("10.78.0.1/24")
			l.serveDHCP4(device, netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.20"), dhcpv4.WithNetmask(net.CIDRMask(24, 32)))
			m := boot(t, []nicOf{{"52:54:00:00:00:01", first}, {"52:54:00:00:00:02", second}},
				append(disk(t, "tiny.qcow2"), seedDisk(t, c.label, c.files(public))...)...)
			m.hasAddresses(c.eth0, bootLimit, c.want0...)
			m.hasAddresses("eth1", stepLimit, c.want1...)
			for command, want := range c.check {
				within(t, stepLimit, command, func() error {
					if got := l.run(t, "patchbay", c.ssh, ssh.PublicKeys(signer), command, stepLimit); !strings.Contains(got, want) {
						return fmt.Errorf("want %q, have %q", want, got)
					}
					return nil
				})
			}
		})
	}
}

// TestTinyInstance checks what is done once per instance and what at every boot, over a restart with the same disk.
func TestTinyInstance(t *testing.T) {
	overlay := filepath.Join(t.TempDir(), "disk.qcow2")
	base, err := filepath.Abs(filepath.Join(guests, "tiny.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay)
	seed := seedDisk(t, "cidata", map[string]string{
		"meta-data": "instance-id: same\n",
		"user-data": "#cloud-config\nbootcmd: ['echo boot >> /etc/boots']\nruncmd: ['echo once >> /etc/runs; sync; poweroff']\nwrite_files: [{path: /etc/autologin, content: root}]\n",
	})
	args := append([]string{"-drive", "file=" + overlay + ",if=none,id=root", "-device", "virtio-blk-pci,drive=root,bootindex=1"}, seed...)
	m := boot(t, nil, args...)
	select { // without a network the commands wait a while
	case <-m.exited:
	case <-time.After(2 * bootLimit):
		t.Fatal("the seed's command does not run without a network")
	}
	m = boot(t, nil, args...)
	m.waitFor("root@", bootLimit)
	if _, err := io.WriteString(m.in, "echo $(wc -l </etc/boots) boots, $(wc -l </etc/runs) runs\n"); err != nil {
		t.Fatal(err)
	}
	m.waitFor("2 boots, 1 runs", stepLimit)
	m.agent("guest-ping", map[string]any{}, nil, stepLimit)
	p, err := dialPeer(m.path("qga.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.conn.Close()
	if _, err := io.WriteString(p.conn, `{"execute":"guest-shutdown"}`+"\n"); err != nil { // no answer when it works
		t.Fatal(err)
	}
	select {
	case <-m.exited:
	case <-time.After(stepLimit):
		t.Fatal("the guest does not shut down when its agent is asked")
	}
}
