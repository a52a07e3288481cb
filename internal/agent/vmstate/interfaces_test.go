package vmstate

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qga"
)

type entry = virtv1.VirtualMachineInstanceNetworkInterface

func nic(name string, last byte, ips ...string) NIC {
	n := NIC{Name: name, MAC: net.HardwareAddr{2, 0, 0, 0, 0, last}, Queues: 1}
	for _, ip := range ips {
		n.IPs = append(n.IPs, netip.MustParseAddr(ip))
	}
	return n
}

func inGuest(name string, last byte, ips ...string) qga.Interface {
	i := qga.Interface{Name: name, MAC: fmt.Sprintf("02:00:00:00:00:%02X", last)}
	for _, ip := range ips {
		i.Addresses = append(i.Addresses, qga.Address{IP: ip})
	}
	return i
}

// machineWith has a masqueraded pod network "default" second, and a bridged network "blue" first.
func machineWith(before ...entry) *virtv1.VirtualMachineInstance {
	vmi := &virtv1.VirtualMachineInstance{}
	vmi.Spec.Networks = []virtv1.Network{
		{Name: "blue", NetworkSource: virtv1.NetworkSource{Multus: &virtv1.MultusNetwork{NetworkName: "blue"}}},
		*virtv1.DefaultPodNetwork(),
	}
	vmi.Spec.Domain.Devices.Interfaces = []virtv1.Interface{
		{Name: "blue", InterfaceBindingMethod: virtv1.InterfaceBindingMethod{Bridge: &virtv1.InterfaceBridge{}}},
		*virtv1.DefaultMasqueradeNetworkInterface(),
	}
	vmi.Status.Interfaces = before
	return vmi
}

func TestInterfaces(t *testing.T) {
	both := []NIC{nic("blue", 2), nic("default", 1, "10.128.0.5", "fd00:10:128::5")}
	const mac1, mac2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
	cases := []struct {
		name   string
		before []entry
		nics   []NIC
		guest  []qga.Interface
		want   []entry
	}{
		{
			name: "no guest agent: pod addresses, nothing for a network without addresses",
			nics: both,
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5", "fd00:10:128::5"}, InfoSource: "domain", QueueCount: 1, LinkState: "up"},
				{Name: "blue", MAC: mac2, InfoSource: "domain", QueueCount: 1, LinkState: "up"},
			},
		},
		{
			name:  "the guest's inner address stays inside, its bridged ones are shown",
			nics:  both,
			guest: []qga.Interface{inGuest("lo", 0, "127.0.0.1"), inGuest("eth0", 1, "10.0.2.2", "fe80::1"), inGuest("eth1", 2, "fe80::2%eth1", "192.0.2.7")},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5", "fd00:10:128::5"}, InfoSource: "domain, guest-agent", InterfaceName: "eth0", QueueCount: 1, LinkState: "up"},
				{Name: "blue", MAC: mac2, IP: "192.0.2.7", IPs: []string{"192.0.2.7", "fe80::2"}, InfoSource: "domain, guest-agent", InterfaceName: "eth1", QueueCount: 1, LinkState: "up"},
			},
		},
		{
			name:  "a guest without addresses yet takes nothing away",
			nics:  []NIC{nic("default", 1, "10.128.0.5")},
			guest: []qga.Interface{inGuest("eth0", 1)},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, InfoSource: "domain, guest-agent", InterfaceName: "eth0", QueueCount: 1, LinkState: "up"},
			},
		},
		{
			name:   "what the controller wrote stays; an interface to be plugged is kept",
			before: []entry{{Name: "default", PodInterfaceName: "eth0"}, {Name: "blue", PodInterfaceName: "pod16477688c0e", InfoSource: "multus-status"}},
			nics:   []NIC{nic("default", 1, "10.128.0.5")},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, PodInterfaceName: "eth0", InfoSource: "domain", QueueCount: 1, LinkState: "up"},
				{Name: "blue", PodInterfaceName: "pod16477688c0e", InfoSource: "multus-status"},
			},
		},
		{
			name:   "plugged: all three sources",
			before: []entry{{Name: "blue", PodInterfaceName: "pod16477688c0e", InfoSource: "multus-status"}},
			nics:   []NIC{nic("blue", 2, "192.0.2.1")},
			guest:  []qga.Interface{inGuest("eth1", 2, "192.0.2.99")},
			want: []entry{
				{Name: "blue", MAC: mac2, IP: "192.0.2.1", IPs: []string{"192.0.2.1"}, PodInterfaceName: "pod16477688c0e", InfoSource: "domain, guest-agent, multus-status", InterfaceName: "eth1", QueueCount: 1, LinkState: "up"},
			},
		},
		{
			name:   "gone from machine and pod",
			before: []entry{{Name: "blue", MAC: mac2, InfoSource: "domain"}},
			nics:   []NIC{nic("default", 1, "10.128.0.5")},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, InfoSource: "domain", QueueCount: 1, LinkState: "up"},
			},
		},
		{
			name:   "an interface that only the guest knows, and a stale one",
			before: []entry{{InterfaceName: "old0", InfoSource: "guest-agent"}},
			nics:   []NIC{nic("default", 1, "10.128.0.5")},
			guest:  []qga.Interface{inGuest("docker0", 9, "172.17.0.1")},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "10.128.0.5", IPs: []string{"10.128.0.5"}, InfoSource: "domain", QueueCount: 1, LinkState: "up"},
				{MAC: "02:00:00:00:00:09", IP: "172.17.0.1", IPs: []string{"172.17.0.1"}, InterfaceName: "docker0", InfoSource: "guest-agent"},
			},
		},
		{
			name: "IPv6-primary network and link down",
			nics: []NIC{{Name: "default", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Queues: 4, LinkDown: true, PodInterface: "ovn-udn1", IPs: []netip.Addr{netip.MustParseAddr("fd00::5"), netip.MustParseAddr("10.0.0.5")}}},
			want: []entry{
				{Name: "default", MAC: mac1, IP: "fd00::5", IPs: []string{"fd00::5", "10.0.0.5"}, PodInterfaceName: "ovn-udn1", InfoSource: "domain", QueueCount: 4, LinkState: "down"},
			},
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := &Domain{NICs: c.nics}
			if c.guest != nil {
				d.Guest = &Guest{Interfaces: c.guest}
			}
			got := interfaces(machineWith(c.before...), d)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// written and read again, nothing changes
			if diff := cmp.Diff(got, interfaces(machineWith(got...), d)); diff != "" {
				t.Errorf("not stable (-first +second):\n%s", diff)
			}
		})
	}
}

func TestGuestOnlyInterfacesAreLimited(t *testing.T) {
	guest := &Guest{}
	for n := range 200 {
		guest.Interfaces = append(guest.Interfaces, inGuest(fmt.Sprintf("veth%d", n), byte(n+3)))
	}
	if got := len(interfaces(machineWith(), &Domain{Guest: guest})); got != maxGuestOnly {
		t.Errorf("%d interfaces, want %d", got, maxGuestOnly)
	}
}

func TestMigratable(t *testing.T) {
	pod := *virtv1.DefaultPodNetwork()
	bridge := virtv1.Interface{Name: "default", InterfaceBindingMethod: virtv1.InterfaceBindingMethod{Bridge: &virtv1.InterfaceBridge{}}}
	plugin := func(name string) virtv1.Interface {
		return virtv1.Interface{Name: "default", Binding: &virtv1.PluginBinding{Name: name}}
	}
	cases := []struct {
		name       string
		interfaces []virtv1.Interface
		annotation bool
		volumes    []virtv1.VolumeSource
		want       string
	}{
		{"masquerade", []virtv1.Interface{*virtv1.DefaultMasqueradeNetworkInterface()}, false, nil, "LiveMigration condition LiveMigratable=True"},
		{"no interface", nil, false, nil, "LiveMigration condition LiveMigratable=True"},
		{"bridge on the pod network", []virtv1.Interface{bridge}, false, nil, "LiveMigration condition LiveMigratable=False InterfaceNotLiveMigratable " + messageBridge},
		{"allowed bridge", []virtv1.Interface{bridge}, true, nil, "LiveMigration condition LiveMigratable=True"},
		{"l2bridge", []virtv1.Interface{plugin("l2bridge")}, false, nil, "LiveMigration condition LiveMigratable=True"},
		{"other plugin", []virtv1.Interface{plugin("mine")}, false, nil, "LiveMigration condition LiveMigratable=False InterfaceNotLiveMigratable " + messageBridge},
		{"secondary bridge", []virtv1.Interface{{Name: "blue", InterfaceBindingMethod: bridge.InterfaceBindingMethod}}, false, nil, "LiveMigration condition LiveMigratable=True"},
		{"container disk", nil, false, []virtv1.VolumeSource{{ContainerDisk: &virtv1.ContainerDiskSource{}}}, "BlockMigration condition LiveMigratable=True"},
		{"host disk", nil, false, []virtv1.VolumeSource{{HostDisk: &virtv1.HostDisk{}}}, "LiveMigration condition LiveMigratable=False DisksNotLiveMigratable cannot migrate VMI with a disk on the node's own file system (hostDisk)"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			vmi := &virtv1.VirtualMachineInstance{}
			vmi.Spec.Networks = []virtv1.Network{pod}
			vmi.Spec.Domain.Devices.Interfaces = c.interfaces
			for _, v := range c.volumes {
				vmi.Spec.Volumes = append(vmi.Spec.Volumes, virtv1.Volume{VolumeSource: v})
			}
			if c.annotation {
				vmi.Annotations = map[string]string{virtv1.AllowPodBridgeNetworkLiveMigrationAnnotation: ""}
			}
			s := &step{o: Observed{VMI: vmi}}
			s.describeMigration()
			if got := string(s.r.Status.MigrationMethod) + " " + conditions(s.r.Status)[0]; got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Addresses that the guest was heard to use stand where nobody else tells one, and never beside what somebody does.
func TestObservedAddresses(t *testing.T) {
	ip := netip.MustParseAddr
	vmi := &virtv1.VirtualMachineInstance{}
	for name, c := range map[string]struct {
		given, seen []netip.Addr
		agent       []qga.Address
		want        string
	}{
		"nobody tells":      {seen: []netip.Addr{ip("10.10.10.15"), ip("10.10.10.14"), ip("fd00::7")}, want: "[10.10.10.15 10.10.10.14 fd00::7] domain, observed"},
		"the network tells": {given: []netip.Addr{ip("10.10.10.2")}, seen: []netip.Addr{ip("10.10.10.14")}, want: "[10.10.10.2] domain"},
		"the agent tells one family": {agent: []qga.Address{{IP: "10.10.10.14"}}, seen: []netip.Addr{ip("10.10.10.14"), ip("fd00::7")},
			want: "[10.10.10.14 fd00::7] domain, guest-agent, observed"},
	} {
		t.Run(name, func(t *testing.T) {
			mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
			d := &Domain{NICs: []NIC{{Name: "blue", MAC: mac, IPs: c.given, Observed: c.seen}}}
			if c.agent != nil {
				d.Guest = &Guest{Interfaces: []qga.Interface{{Name: "eth1", MAC: mac.String(), Addresses: c.agent}}}
			}
			i := interfaces(vmi, d)[0]
			if got := fmt.Sprintf("%s %s", i.IPs, i.InfoSource); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
