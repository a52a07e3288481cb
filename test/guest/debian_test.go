package guest_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/crypto/ssh"
)

// Debian boots in 20 to 40 s in an emulated machine; cloud-init may take as long again on a busy one.
const debianLimit = 4 * time.Minute

// TestDebian boots the debian guest with the seed of the reference's examples and with network cards that only its kernel knows.
func TestDebian(t *testing.T) {
	l := newLab(t)
	signer, public := newKey(t)
	device, first := l.tap("10.77.0.1/24", "fd77::1/64")
	spareDevice, spare := l.tap("10.78.0.1/24")
	l.serveDHCP4(device, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.20"), options4()...)
	l.serveDHCP4(spareDevice, netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("10.78.0.20"), dhcpv4.WithNetmask(net.CIDRMask(24, 32)))
	seed := seedDisk(t, "cidata", map[string]string{
		"meta-data":      `{"instance-id":"i-debian","local-hostname":"deb"}`,
		"user-data":      "#cloud-config\nuser: cloud-user\nssh_authorized_keys: ['" + public + "']\nruncmd: ['echo ran > /etc/ran']\n",
		"network-config": "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    addresses: ['fd77::40/64']\n    gateway6: fd77::1\n",
	})
	// A SATA disk for the seed, as manifests with a CD-ROM have it.
	seed[1] = strings.Replace(seed[1], "if=none,id=seed", "if=none,id=seed,media=cdrom", 1)
	seed[3] = "ide-cd,drive=seed,bus=ide.0"
	m := boot(t, []nicOf{{"52:54:00:00:00:01", first}, {"", spare}}, append(append(disk(t, "debian.qcow2"), seed...), "-m", "512", "-boot", "strict=on")...)
	t.Logf("login after %.1f s", m.waitFor("login:", debianLimit).Seconds())

	m.agent("guest-ping", map[string]any{}, nil, debianLimit)
	t.Logf("guest agent after %.1f s", time.Since(m.started).Seconds())
	m.hasAddresses("eth0", debianLimit, "10.77.0.20/24", "fd77::40/64")
	for command, want := range map[string]string{
		"cat /etc/ran":                    "ran",
		"hostname":                        "deb",
		"ip route":                        "192.168.99.0/24 via 10.77.0.7 dev eth0",
		"ip -6 route show default":        "via fd77::1 dev eth0",
		"ip link show eth0":               "mtu 1400",
		"cat /etc/resolv.conf":            "nameserver 10.77.0.53",
		"cat /run/cloud-init/result.json": "DataSourceNoCloud",
		"sudo -n id -u":                   "0",
	} {
		within(t, debianLimit, command, func() error {
			if got := l.run(t, "cloud-user", "10.77.0.20:22", ssh.PublicKeys(signer), command, debianLimit); !strings.Contains(got, want) {
				return fmt.Errorf("want %q, have %q", want, got)
			}
			return nil
		})
	}
	if page := l.get(t, "10.77.0.20:80", "/"); !strings.Contains(page, "hostname: deb\n") {
		t.Errorf("the page says %q", page)
	}

	m.qmp("netdev_add", map[string]any{"type": "tap", "id": "hot", "fd": "4"})
	m.qmp("device_add", map[string]any{"driver": "e1000e", "netdev": "hot", "id": "hotnic", "bus": "spare", "mac": "52:54:00:00:00:02", "romfile": ""})
	m.hasAddresses("eth1", debianLimit, "10.78.0.20/24")

	m.qmp("system_powerdown", map[string]any{})
	select {
	case <-m.exited:
	case <-time.After(debianLimit):
		t.Fatal("the guest does not shut down when its power button is pressed")
	}
}
