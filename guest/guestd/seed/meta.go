package seed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"
)

// Meta is the machine's identity.
type Meta struct {
	InstanceID string
	Hostname   string
	Keys       []string // public SSH keys of the default user
}

// parseMeta reads meta-data (YAML) or meta_data.json; keys are spelled with a hyphen in one and an underscore in the other.
func parseMeta(data []byte) (Meta, error) {
	var in struct {
		ID1           Text            `json:"instance-id"`
		ID2           Text            `json:"instance_id"`
		UUID          Text            `json:"uuid"`
		LocalHostname Text            `json:"local-hostname"`
		Hostname      Text            `json:"hostname"`
		Keys1         json.RawMessage `json:"public-keys"`
		Keys2         json.RawMessage `json:"public_keys"`
	}
	if err := yaml.Unmarshal(data, &in); err != nil {
		return Meta{}, err
	}
	out := Meta{
		InstanceID: first(in.ID1, in.ID2, in.UUID),
		Hostname:   first(in.LocalHostname, in.Hostname),
	}
	for _, raw := range []json.RawMessage{in.Keys1, in.Keys2} {
		keys, err := publicKeys(raw)
		if err != nil {
			return Meta{}, err
		}
		out.Keys = append(out.Keys, keys...)
	}
	return out, nil
}

// publicKeys accepts what cloud-init does: one key, a list, or a map of names to keys or to {"openssh-key": key}.
func publicKeys(raw json.RawMessage) ([]string, error) {
	if raw == nil {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	var named map[string]json.RawMessage
	if err := json.Unmarshal(raw, &named); err != nil {
		return nil, fmt.Errorf("public keys: %w", err)
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(named)) {
		var nested struct {
			Key string `json:"openssh-key"`
		}
		if json.Unmarshal(named[name], &nested) == nil && nested.Key != "" {
			out = append(out, nested.Key)
			continue
		}
		keys, err := publicKeys(named[name])
		if err != nil {
			return nil, err
		}
		out = append(out, keys...)
	}
	return out, nil
}

func first(values ...Text) string {
	for _, v := range values {
		if v != "" {
			return string(v)
		}
	}
	return ""
}

// Text is a string that may be written without quotes where YAML takes it for a number or a truth value (a password of digits).
type Text string

// UnmarshalJSON keeps the value as it was written.
func (t *Text) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		*t = Text(s)
		return nil
	}
	if string(data) != "null" {
		*t = Text(data)
	}
	return nil
}
