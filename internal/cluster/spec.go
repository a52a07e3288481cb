// Package cluster runs a Kubernetes cluster with virtual machines and complete networking on one host: every node is a pair of
// namespaces with its own Open vSwitch, containerd and kubelet. It offers up, down, status and the supervisor behind them.
// The host's own network is not its business.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"patchbay/internal/cluster/fabric"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/pki"
	"patchbay/internal/settings"
)

// Spec is what a user chose for a local cluster. It is the first file of a new cluster and tells that a directory is one.
type Spec struct {
	Name    string `json:"name"`
	Nodes   int    `json:"nodes"`
	APIPort int    `json:"apiPort"` // on 127.0.0.1 of the host
	MTU     int    `json:"mtu"`     // of the fabric
	Expose  bool   `json:"expose"`  // the host has a leg in the fabric
	// ExtraNICs is how many cards every node has besides the fabric's, each in a network of its own that joins the nodes.
	ExtraNICs int `json:"extraNICs,omitempty"`
}

// errNoCluster tells that there is no cluster of that name.
var errNoCluster = errors.New("there is no such cluster; start one with `patchbay up`")

func readSpec(c layout.Cluster) (Spec, error) {
	data, err := os.ReadFile(c.ConfigFile())
	if errors.Is(err, fs.ErrNotExist) {
		return Spec{}, fmt.Errorf("cluster %q: %w", c.Name, errNoCluster)
	}
	if err != nil {
		return Spec{}, err
	}
	var s Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return Spec{}, fmt.Errorf("%s: %w; remove the cluster with `patchbay down --name %s`", c.ConfigFile(), err, c.Name)
	}
	return s, s.validate()
}

func (s Spec) validate() error {
	var errs []error
	if s.Nodes < 1 || s.Nodes > layout.MaxNodes {
		errs = append(errs, fmt.Errorf("--nodes is %d; choose 1 to %d", s.Nodes, layout.MaxNodes))
	}
	if s.APIPort < 1 || s.APIPort > 65535 {
		errs = append(errs, fmt.Errorf("--api-port is %d; choose 1 to 65535", s.APIPort))
	}
	if s.MTU < minMTU || s.MTU > maxMTU {
		errs = append(errs, fmt.Errorf("--mtu is %d; choose %d to %d", s.MTU, minMTU, maxMTU))
	}
	if s.ExtraNICs < 0 || s.ExtraNICs > fabric.MaxExtraNICs {
		errs = append(errs, fmt.Errorf("--extra-nic is %d; choose 0 to %d", s.ExtraNICs, fabric.MaxExtraNICs))
	}
	return errors.Join(errs...)
}

// Pods need 1280 bytes for IPv6, and the overlay takes its share of the fabric's frames. Virtual Ethernet devices end at 65535.
const (
	minMTU = 1280 + settings.OverlayOverhead
	maxMTU = 65535
)

func (s Spec) write(c layout.Cluster) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir(), 0o755); err != nil {
		return err
	}
	return replaceFile(c.ConfigFile(), append(data, '\n'), 0o644)
}

// settings are the file that all Patchbay processes of the cluster read.
func (s Spec) settings() settings.Settings {
	out := settings.Default()
	out.ClusterName = s.Name
	out.FabricMTU = s.MTU
	out.PodMTU = s.MTU - settings.OverlayOverhead
	out.APIServer = "https://" + netip.AddrPortFrom(layout.ControlPlane4, layout.APIPort).String()
	out.ControlPlane = []netip.Addr{layout.ControlPlane4, layout.ControlPlane6}
	return out
}

// writeFiles makes everything that must exist before the first process: settings, keys, certificates, kubeconfigs. It keeps what
// is there and valid.
func (s Spec) writeFiles(c layout.Cluster) error {
	if err := s.write(c); err != nil {
		return fmt.Errorf("write the cluster's files: %w", err)
	}
	for _, dir := range []string{c.Run(), c.Logs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	chosen := s.settings()
	if err := chosen.Validate(); err != nil {
		return err
	}
	if err := chosen.Save(c.SettingsFile()); err != nil {
		return fmt.Errorf("write the cluster's settings: %w", err)
	}
	request := pki.Request{Cluster: c, Nodes: s.Nodes, Domain: chosen.ClusterDomain, LocalPort: s.APIPort}
	for _, service := range chosen.ServiceCIDRs {
		request.ServiceIPs = append(request.ServiceIPs, service.Addr().Next())
	}
	return pki.EnsureCluster(request)
}

func replaceFile(path string, data []byte, mode fs.FileMode) error {
	if err := os.WriteFile(path+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Names lists the clusters below a home directory.
func Names(home string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(home, "*", "cluster.json"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(filepath.Dir(file)))
	}
	return names, nil
}
