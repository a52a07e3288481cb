package nmstate

import "slices"

// VLANEntry is one range of tags of a bridge's port, as the kernel keeps them.
type VLANEntry struct {
	Low, High int
	PVID      bool // untagged frames that come in belong to it
	Untagged  bool // its frames go out without tag
}

// defaultPVID is the VLAN of untagged frames in a bridge.
const defaultPVID = 1

// Entries are the tags that a port carries, in ascending order.
func (v *PortVLAN) Entries() []VLANEntry {
	if v == nil {
		return nil
	}
	native := defaultPVID
	if v.Tag != nil && *v.Tag != 0 && (v.Mode == "access" || isTrue(v.EnableNative)) {
		native = *v.Tag
	}
	entries := []VLANEntry{{Low: native, High: native, PVID: true, Untagged: true}}
	for _, t := range v.TrunkTags {
		low, high := t.bounds()
		// The native tag is in the list already.
		if low <= native && native <= high {
			if low < native {
				entries = append(entries, VLANEntry{Low: low, High: native - 1})
			}
			low = native + 1
		}
		if low <= high {
			entries = append(entries, VLANEntry{Low: low, High: high})
		}
	}
	return joinEntries(entries)
}

// joinEntries sorts and joins neighbouring ranges.
func joinEntries(entries []VLANEntry) []VLANEntry {
	slices.SortFunc(entries, func(a, b VLANEntry) int { return a.Low - b.Low })
	var out []VLANEntry
	for _, e := range entries {
		if n := len(out) - 1; n >= 0 && out[n].High+1 == e.Low && out[n].PVID == e.PVID && out[n].Untagged == e.Untagged && !e.PVID {
			out[n].High = e.High
			continue
		}
		out = append(out, e)
	}
	return out
}

// PortVLANOf is what a document says of these entries; nil without any.
func PortVLANOf(entries []VLANEntry) *PortVLAN {
	if len(entries) == 0 {
		return nil
	}
	v, native := &PortVLAN{Mode: "trunk"}, 0
	for _, e := range joinEntries(slices.Clone(entries)) {
		if e.PVID {
			native = e.Low
			continue
		}
		if e.Low == e.High {
			v.TrunkTags = append(v.TrunkTags, TrunkTag{ID: new(e.Low)})
		} else {
			v.TrunkTags = append(v.TrunkTags, TrunkTag{IDRange: &IDRange{Min: e.Low, Max: e.High}})
		}
	}
	switch {
	case len(v.TrunkTags) == 0:
		return &PortVLAN{Mode: "access", Tag: new(native)}
	case native != 0 && native != defaultPVID:
		v.EnableNative, v.Tag = new(true), new(native)
	}
	return v
}

// carriesAll says whether the port drops nothing that a bridge without filtering would carry.
func (v *PortVLAN) carriesAll() bool {
	entries := v.Entries()
	return v.Mode == "trunk" && len(entries) == 2 && entries[0] == VLANEntry{Low: 1, High: 1, PVID: true, Untagged: true} &&
		entries[1] == VLANEntry{Low: 2, High: 4094}
}

// Tags lists every tag of a trunk, for Open vSwitch.
func (v *PortVLAN) Tags() []int {
	var tags []int
	for _, t := range v.TrunkTags {
		low, high := t.bounds()
		for id := low; id <= high; id++ {
			tags = append(tags, id)
		}
	}
	slices.Sort(tags)
	return tags
}
