package admission

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

func (c *checker) hostname() {
	if at := c.root.Child("hostname"); c.spec.Hostname != "" {
		if problems := validation.IsDNS1123Label(c.spec.Hostname); len(problems) > 0 {
			c.invalid(at, "%s does not conform to the kubernetes DNS_LABEL rules : %s", at, strings.Join(problems, ", "))
		}
	}
	if at := c.root.Child("subdomain"); c.spec.Subdomain != "" {
		if problems := validation.IsDNS1123Subdomain(c.spec.Subdomain); len(problems) > 0 {
			c.invalid(at, "%s does not conform to the kubernetes DNS_SUBDOMAIN rules : %s", at, strings.Join(problems, ", "))
		}
	}
}

func (c *checker) cpuSockets() {
	if cpu := c.spec.Domain.CPU; cpu != nil && cpu.MaxSockets != 0 && cpu.Sockets > cpu.MaxSockets {
		c.invalid(c.root.Child("domain", "cpu", "sockets"),
			"Number of sockets in CPU topology is greater than the maximum sockets allowed")
	}
}

// bootOrder checks that no two devices share a position; interfaces are counted before disks.
func (c *checker) bootOrder() {
	taken := map[uint]bool{}
	for i, iface := range c.spec.Domain.Devices.Interfaces {
		// Published releases index the spec itself here; clients show the field as it comes.
		c.bootPosition(iface.BootOrder, c.root.Index(i), c.iface(i), taken)
	}
	for i, disk := range c.spec.Domain.Devices.Disks {
		c.bootPosition(disk.BootOrder, c.disk(i), c.disk(i), taken)
	}
}

func (c *checker) bootPosition(order *uint, positive, unique *field.Path, taken map[uint]bool) {
	if order == nil {
		return
	}
	if *order < 1 {
		c.invalid(positive.Child("bootOrder"), "%s must have a boot order > 0, if supplied", positive)
		return
	}
	if at := unique.Child("bootOrder"); taken[*order] {
		c.invalid(at, "Boot order for %s already set for a different device.", at)
	}
	taken[*order] = true
}

func (c *checker) probes() {
	probes := []struct {
		at    *field.Path
		probe *virtv1.Probe
	}{
		{c.root.Child("readinessProbe"), c.spec.ReadinessProbe},
		{c.root.Child("livenessProbe"), c.spec.LivenessProbe},
	}
	for _, p := range probes {
		if p.probe != nil {
			c.probeHandlers(p.at, p.probe)
		}
	}
	if slices.ContainsFunc(c.spec.Networks, func(n virtv1.Network) bool { return n.Pod != nil }) {
		return
	}
	for _, p := range probes {
		if p.probe != nil && p.probe.HTTPGet != nil {
			c.podNetworkNeeded(p.at.Child("httpGet"))
		}
		if p.probe != nil && p.probe.TCPSocket != nil {
			c.podNetworkNeeded(p.at.Child("tcpSocket"))
		}
	}
}

func (c *checker) probeHandlers(at *field.Path, p *virtv1.Probe) {
	switch handlers := count(p.HTTPGet != nil, p.TCPSocket != nil, p.Exec != nil, p.GuestAgentPing != nil); {
	case handlers > 1:
		c.invalid(at, "%s must have exactly one probe type set", at)
	case handlers < 1:
		c.required(at, "either %s, %s or %s must be set if a %s is specified",
			at.Child("tcpSocket"), at.Child("exec"), at.Child("httpGet"), at)
	}
}

func (c *checker) podNetworkNeeded(at *field.Path) {
	c.invalid(at, "%s is only allowed if the Pod Network is attached", at)
}

func (c *checker) evictionStrategy() {
	known := []virtv1.EvictionStrategy{
		virtv1.EvictionStrategyNone, virtv1.EvictionStrategyLiveMigrate,
		virtv1.EvictionStrategyLiveMigrateIfPossible, virtv1.EvictionStrategyExternal,
	}
	at := c.root.Child("evictionStrategy")
	if s := c.spec.EvictionStrategy; s != nil && !slices.Contains(known, *s) {
		c.invalid(at, "%s is set with an unrecognized option: %s", at, *s)
	}
}
