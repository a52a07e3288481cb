package admission

import (
	"bytes"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

const (
	macLength    = 6 // bytes of an Ethernet address
	maxPort      = 65535
	maxRanges    = 10
	firstPrivate = 224 // DHCP options for private use, RFC 2132
	lastPrivate  = 254
)

var (
	interfaceName = regexp.MustCompile(`^[A-Za-z0-9-_]+$`)
	pciAddress    = regexp.MustCompile(`^[\da-fA-F]{4}:[\da-fA-F]{2}:[01][\da-fA-F]\.[0-7]$`)
	models        = []string{"e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139", "virtio"}
)

// interfaces are the rules about the fields of one interface, all rules of the first interface before those of the second.
func (c *checker) interfaces() {
	for i, iface := range c.spec.Domain.Devices.Interfaces {
		at := c.iface(i)
		if !interfaceName.MatchString(iface.Name) {
			c.invalid(at.Child("name"),
				"Network interface name can only contain alphabetical characters, numbers, dashes (-) or underscores (_)")
		}
		if iface.Model != "" && !slices.Contains(models, iface.Model) {
			c.notSupported(at.Child("model"), "interface %s uses model %s that is not supported.", at.Child("name"), iface.Model)
		}
		c.mac(at, iface.MacAddress)
		if iface.PciAddress != "" && !pciAddress.MatchString(iface.PciAddress) {
			c.invalid(at.Child("pciAddress"), "interface %s has malformed PCI address (%s).", at.Child("name"), iface.PciAddress)
		}
		if c.onPod(iface) {
			c.ports(at.Child("ports"), iface.Ports)
		}
		c.portRanges(at, iface)
		c.dhcp(at.Child("dhcpOptions"), iface.DHCPOptions)
	}
}

func (c *checker) mac(at *field.Path, mac string) {
	if mac == "" {
		return
	}
	parsed, err := net.ParseMAC(mac)
	switch {
	case err != nil:
		c.invalid(at.Child("macAddress"), "interface %s has malformed MAC address (%s).", at.Child("name"), mac)
	case len(parsed) > macLength:
		c.invalid(at.Child("macAddress"), "interface %s has too long MAC address (%s).", at.Child("name"), mac)
	case parsed[0]&1 != 0 || bytes.Equal(parsed, make([]byte, macLength)):
		// No published rule: guests take another address than such a one, and nothing reaches them.
		c.invalid(at.Child("macAddress"), "interface %s has a MAC address that no single host can have (%s); choose a unicast address such as 02:00:00:00:00:11.",
			at.Child("name"), mac)
	}
}

func (c *checker) ports(at *field.Path, ports []virtv1.Port) {
	seen := map[string]bool{}
	for j, p := range ports {
		if p.Name != "" {
			if seen[p.Name] {
				c.duplicate(at.Index(j).Child("name"), "Duplicate name of the port: %s", p.Name)
			}
			seen[p.Name] = true
			if len(validation.IsValidPortName(p.Name)) > 0 {
				c.invalid(at.Index(j).Child("name"), "Invalid name of the port: %s", p.Name)
			}
		}
		if p.Port == 0 {
			c.required(at.Index(j).Child("port"), "Port field is mandatory.")
		}
		if p.Port < 0 || p.Port > maxPort {
			c.invalid(at.Index(j).Child("port"), "Port field must be in range 0 < x < 65536.")
		}
		if p.Protocol != "" && !knownProtocol(p.Protocol) {
			c.invalid(at.Index(j).Child("protocol"), "Unknown protocol, only TCP or UDP allowed")
		}
	}
}

func knownProtocol(p string) bool { return p == "TCP" || p == "UDP" }

func (c *checker) portRanges(iface *field.Path, spec virtv1.Interface) {
	ranges := spec.PortRanges
	if len(ranges) == 0 {
		return
	}
	if !c.policy.Gates(GatePortRanges) {
		c.invalid(iface.Child("name"), "portRanges is specified on interface but the PortRangesSpec feature gate is not enabled")
		return
	}
	if len(spec.Ports) > 0 {
		c.invalid(iface.Child("name"), "Cannot define both ports and portRanges on interface")
	}
	if spec.Masquerade == nil {
		c.invalid(iface.Child("name"), "portRanges are only supported on masquerade interfaces")
	}
	at := iface.Child("portRanges")
	if len(ranges) > maxRanges {
		c.invalid(at, "No more than %d portRanges are allowed", maxRanges)
	}
	for j, r := range ranges {
		c.portRange(at.Index(j), r)
	}
	c.overlaps(at, ranges)
}

func (c *checker) portRange(at *field.Path, r virtv1.PortRange) {
	if !knownProtocol(r.Protocol) {
		c.invalid(at.Child("protocol"), "Unknown protocol, only TCP or UDP allowed")
	}
	if r.Start < 1 || r.Start > maxPort {
		c.invalid(at.Child("start"), "Start must be a valid port number, 0 < x < 65536")
	}
	if r.End < 1 || r.End > maxPort {
		c.invalid(at.Child("end"), "End must be a valid port number, 0 < x < 65536")
	}
	if r.Start > r.End {
		c.invalid(at.Child("start"), "Start must be less than or equal to end")
	}
}

func (c *checker) overlaps(at *field.Path, ranges []virtv1.PortRange) {
	for i, a := range ranges {
		for _, b := range ranges[i+1:] {
			if a.Protocol == b.Protocol && a.Start <= b.End && b.Start <= a.End {
				c.invalid(at, "%s portRanges [%d-%d] and [%d-%d] overlap", a.Protocol, a.Start, a.End, b.Start, b.End)
			}
		}
	}
}

func (c *checker) dhcp(at *field.Path, options *virtv1.DHCPOptions) {
	if options == nil {
		return
	}
	seen := map[int]bool{}
	duplicates, outside := false, false
	for _, o := range options.PrivateOptions {
		duplicates = duplicates || seen[o.Option]
		outside = outside || o.Option < firstPrivate || o.Option > lastPrivate
		seen[o.Option] = true
	}
	if duplicates {
		c.invalid(c.root, "Found Duplicates: you have provided duplicate DHCPPrivateOptions")
	}
	if outside {
		c.invalid(c.root, "provided DHCPPrivateOptions are out of range, must be in range %d to %d", firstPrivate, lastPrivate)
	}
	for j, server := range options.NTPServers {
		if a, err := netip.ParseAddr(server); err != nil || !a.Is4() {
			c.invalid(at.Child("ntpServers").Index(j), "NTP servers must be a list of valid IPv4 addresses.")
		}
	}
}
