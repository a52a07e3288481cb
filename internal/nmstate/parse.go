package nmstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// ErrDocument marks errors of the document itself: no node will ever accept it.
var ErrDocument = errors.New("document")

// Error is a refusal in the words of the field: a kind, and what is wrong.
type Error struct {
	Kind  string
	Text  string
	final bool
}

// Kinds of errors.
const (
	kindInvalid      = "InvalidArgument"
	kindNotSupported = "NotSupportedError"
	KindVerification = "VerificationError"
)

func (e *Error) Error() string { return e.Kind + ": " + e.Text }

// Is says whether the document itself is to blame.
func (e *Error) Is(target error) bool { return target == ErrDocument && e.final }

// invalid refuses the document itself.
func invalid(format string, args ...any) error {
	return &Error{Kind: kindInvalid, Text: fmt.Sprintf(format, args...), final: true}
}

// unfit refuses the document on this node, as it is now.
func unfit(format string, args ...any) error {
	return &Error{Kind: kindInvalid, Text: fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &Error{Kind: kindNotSupported, Text: fmt.Sprintf(format, args...), final: true}
}

// Parse reads and checks a desired state in YAML or JSON. Unknown fields are errors.
func Parse(raw []byte) (State, error) {
	data, err := yaml.YAMLToJSON(raw)
	if err != nil {
		return State{}, invalid("the desired state is not YAML: %v", err)
	}
	var s State
	if bytes.Equal(data, []byte("null")) {
		return s, nil
	}
	unknown, err := kjson.UnmarshalStrict(data, &s)
	if err != nil {
		return State{}, invalid("%v", err)
	}
	if len(unknown) > 0 {
		return State{}, invalid("%v", errors.Join(unknown...))
	}
	s.normalise()
	return s, s.validate()
}

// UnmarshalJSON takes the short form, too.
func (s *STP) UnmarshalJSON(data []byte) error {
	var on bool
	if json.Unmarshal(data, &on) == nil {
		*s = STP{Enabled: &on}
		return nil
	}
	type plain STP
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return decoder.Decode((*plain)(s))
}

// normalise fills in what may be left out.
func (s *State) normalise() {
	for n := range s.Interfaces {
		if s.Interfaces[n].State == "" {
			s.Interfaces[n].State = Up
		}
	}
}

// WithDefaults adds to a desired state what the field's handler adds: ports of a Linux bridge carry every tag unless they say
// otherwise. Untagged frames stay in the bridge's own VLAN.
func (s State) WithDefaults() State {
	for n := range s.Interfaces {
		i := &s.Interfaces[n]
		if i.Type != LinuxBridge || i.State != Up || i.Bridge == nil {
			continue
		}
		for p := range i.Bridge.Port {
			if i.Bridge.Port[p].VLAN == nil {
				i.Bridge.Port[p].VLAN = allTags()
			}
		}
	}
	return s
}

func allTags() *PortVLAN {
	return &PortVLAN{Mode: "trunk", TrunkTags: []TrunkTag{{IDRange: &IDRange{Min: 2, Max: 4094}}}}
}

// Empty says whether the document asks for nothing.
func (s State) Empty() bool {
	return len(s.Interfaces) == 0 && s.Routes == nil && s.OVN == nil && s.OVSDB == nil && s.DNS == nil && s.Hostname == nil && s.RouteRules == nil
}

// YAML is the document as people read it.
func (s State) YAML() ([]byte, error) { return yaml.Marshal(s) }
