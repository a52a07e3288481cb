package delegate

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
)

// TypeOf is the CNI type of a definition's configuration: that of its only or first plugin.
func TypeOf(config []byte) (string, error) {
	list, err := parseList(config, "")
	if err != nil {
		return "", err
	}
	kind, _ := list.plugins[0]["type"].(string)
	return kind, nil
}

// list is a configuration as a tree, so that keys that only the plugin knows stay.
type list struct {
	top     map[string]any
	plugins []map[string]any
}

// parseList reads the configuration of a single plugin or a list of them; both are found in definitions.
func parseList(config []byte, name string) (list, error) {
	if len(strings.TrimSpace(string(config))) == 0 {
		return list{}, errors.New("spec.config is empty; write the CNI configuration of the network there")
	}
	var top map[string]any
	if err := json.Unmarshal(config, &top); err != nil {
		return list{}, fmt.Errorf("spec.config is not JSON: %w", err)
	}
	if top["name"] == nil || top["name"] == "" {
		top["name"] = name
	}
	raw, isList := top["plugins"]
	if !isList {
		if kind, _ := top["type"].(string); kind == "" {
			return list{}, errors.New("spec.config has no type; name the CNI plugin there")
		}
		wrapped := map[string]any{"name": top["name"], "plugins": []any{top}}
		if v, ok := top["cniVersion"]; ok {
			wrapped["cniVersion"] = v
		}
		return list{wrapped, []map[string]any{top}}, nil
	}
	plugins, ok := raw.([]any)
	if !ok || len(plugins) == 0 {
		return list{}, errors.New("spec.config has no plugins in its list")
	}
	l := list{top: top}
	for n, p := range plugins {
		plugin, ok := p.(map[string]any)
		if kind, _ := plugin["type"].(string); !ok || kind == "" {
			return list{}, fmt.Errorf("spec.config: plugin %d of the list has no type", n)
		}
		l.plugins = append(l.plugins, plugin)
	}
	return l, nil
}

// noMaster says more than a plugin does when the interface that it was to build upon is not there.
func noMaster(config []byte) string {
	l, err := parseList(config, "")
	if err != nil {
		return ""
	}
	for _, plugin := range l.plugins {
		name, _ := plugin["master"].(string)
		if inside, _ := plugin["linkInContainer"].(bool); name == "" || inside {
			continue
		}
		if _, err := net.InterfaceByName(name); err != nil {
			return fmt.Sprintf("; this node has no interface %q, which the definition names as master", name)
		}
	}
	return ""
}

// complete puts what the pod asks into the configuration.
func complete(a Attachment) ([]byte, error) {
	if a.Request.MAC != "" {
		if _, err := net.ParseMAC(a.Request.MAC); err != nil {
			return nil, fmt.Errorf("network %s: %q is not a MAC address; write it as 02:00:00:ab:cd:ef", a.Network, a.Request.MAC)
		}
	}
	l, err := parseList(a.Config, path.Base(a.Network))
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", a.Network, err)
	}
	for _, plugin := range l.plugins {
		if len(a.Request.Args) > 0 {
			args, _ := plugin["args"].(map[string]any)
			if args == nil {
				args = map[string]any{}
				plugin["args"] = args
			}
			args["cni"] = a.Request.Args
		}
	}
	return json.Marshal(l.top)
}
