package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"patchbay/internal/agent/durable"
)

// Names of what the runtime reads.
const (
	PluginName = "patchbay-cni"
	// ConfigName sorts before the usual names: runtimes take the first file.
	ConfigName = "10-patchbay.conflist"
)

const configVersion = "1.1.0"

type conflist struct {
	CNIVersion string         `json:"cniVersion"`
	Name       string         `json:"name"`
	Plugins    []pluginConfig `json:"plugins"`
}

type pluginConfig struct {
	Type   string `json:"type"`
	Socket string `json:"socket"`
}

// Install puts the plugin's program where the runtime looks for it and then the configuration, which tells kubelet that the
// node's network is ready. Write it only when requests are served.
func Install(program, pluginDir, configDir, socket string) error {
	if err := installProgram(program, filepath.Join(pluginDir, PluginName)); err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	data, err := json.MarshalIndent(conflist{configVersion, NetworkName, []pluginConfig{{PluginName, socket}}}, "", "  ")
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(configDir, ConfigName), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("install the CNI configuration: %w", err)
	}
	return nil
}

func installProgram(source, target string) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	return replace(target, data, 0o755)
}

// replace writes a file unless it has this content already; readers see the old or the new one.
func replace(path string, data []byte, mode fs.FileMode) error {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.Write(path, data, mode)
}
