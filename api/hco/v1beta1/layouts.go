package v1beta1

import (
	"reflect"
)

// Version1 is the version whose layout has sections; the other version has everything below spec.
const Version1 = "v1"

// Settings are the settings of an object, whichever layout they are in.
func (s Spec) Settings() (VirtualizationSpec, NetworkingSpec) {
	v, n := s.VirtualizationSpec, s.NetworkingSpec
	if s.Virtualization != nil {
		fill(&v, s.Virtualization)
	}
	if s.Networking != nil {
		fill(&n, s.Networking)
	}
	return v, n
}

// fill overwrites fields with those of another struct that are set there.
func fill[T any](into, from *T) {
	to, of := reflect.ValueOf(into).Elem(), reflect.ValueOf(from).Elem()
	for i := range to.NumField() {
		if !of.Field(i).IsZero() {
			to.Field(i).Set(of.Field(i))
		}
	}
}

// Agree makes both layouts say the same. version is the one that a client wrote the object in and old the spec before, empty when
// the object is new. The version's own layout counts, unless the client wrote something new into the other one.
func (s *Spec) Agree(old Spec, version string) {
	v, n := pair(&s.VirtualizationSpec, &s.Virtualization), pair(&s.NetworkingSpec, &s.Networking)
	oldV, oldN := pair(&old.VirtualizationSpec, &old.Virtualization), pair(&old.NetworkingSpec, &old.Networking)
	own := 0
	if version == Version1 {
		own = 1
	}
	agree(v, oldV, own)
	agree(n, oldN, own)
	s.Virtualization, s.Networking = v[1], n[1]
	if reflect.ValueOf(*s.Virtualization).IsZero() {
		s.Virtualization = nil
	}
	if reflect.ValueOf(*s.Networking).IsZero() {
		s.Networking = nil
	}
}

// pair are the same settings in both layouts.
func pair[T any](flat *T, section **T) [2]*T {
	if *section == nil {
		return [2]*T{flat, new(T)}
	}
	return [2]*T{flat, *section}
}

func agree[T any](now, old [2]*T, own int) {
	mine, other := reflect.ValueOf(now[own]).Elem(), reflect.ValueOf(now[1-own]).Elem()
	before := reflect.ValueOf(old[1-own]).Elem()
	for i := range mine.NumField() {
		written := !other.Field(i).IsZero() && !reflect.DeepEqual(other.Field(i).Interface(), before.Field(i).Interface())
		if written {
			mine.Field(i).Set(other.Field(i))
		} else {
			other.Field(i).Set(mine.Field(i))
		}
	}
}
