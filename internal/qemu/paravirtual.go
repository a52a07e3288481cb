package qemu

import virtv1 "kubevirt.io/api/core/v1"

// paravirtual are the processor features through which a guest knows its hypervisor. They need hardware virtualisation and are hints:
// under emulation a guest runs without them.
func paravirtual(domain *virtv1.DomainSpec) properties {
	var p properties
	if c := domain.Clock; c != nil && c.Timer != nil {
		if t := c.Timer.KVM; t != nil && !unlessFalse(t.Enabled) {
			p.set("kvmclock", false)
		}
		if t := c.Timer.Hyperv; t != nil && unlessFalse(t.Enabled) {
			p.set("hv-time", true)
		}
	}
	f := domain.Features
	if f == nil {
		return p
	}
	if f.KVM != nil && f.KVM.Hidden {
		p.set("kvm", false)
	}
	if f.Pvspinlock != nil {
		p.set("kvm-pv-unhalt", unlessFalse(f.Pvspinlock.Enabled))
	}
	if f.HypervPassthrough != nil && unlessFalse(f.HypervPassthrough.Enabled) {
		p.set("hv-passthrough", true)
	}
	if f.Hyperv != nil {
		p = append(p, hyperv(f.Hyperv)...)
	}
	return p
}

func hyperv(h *virtv1.FeatureHyperv) properties {
	var p properties
	for _, feature := range []struct {
		state *virtv1.FeatureState
		name  string
	}{
		{h.Relaxed, "hv-relaxed"}, {h.VAPIC, "hv-vapic"}, {h.VPIndex, "hv-vpindex"}, {h.Runtime, "hv-runtime"}, {h.SyNIC, "hv-synic"},
		{h.Reset, "hv-reset"}, {h.Frequencies, "hv-frequencies"}, {h.Reenlightenment, "hv-reenlightenment"}, {h.IPI, "hv-ipi"}, {h.EVMCS, "hv-evmcs"},
	} {
		if feature.state != nil {
			p.set(feature.name, unlessFalse(feature.state.Enabled))
		}
	}
	if s := h.Spinlocks; s != nil && unlessFalse(s.Enabled) {
		retries := uint32(4096)
		if s.Retries != nil {
			retries = *s.Retries
		}
		p.set("hv-spinlocks", retries)
	}
	if s := h.SyNICTimer; s != nil && unlessFalse(s.Enabled) {
		p.set("hv-stimer", true)
		if s.Direct != nil && unlessFalse(s.Direct.Enabled) {
			p.set("hv-stimer-direct", true)
		}
	}
	if t := h.TLBFlush; t != nil && unlessFalse(t.Enabled) {
		p.set("hv-tlbflush", true)
	}
	if v := h.VendorID; v != nil && unlessFalse(v.Enabled) {
		p.set("hv-vendor-id", v.VendorID)
	}
	return p
}
