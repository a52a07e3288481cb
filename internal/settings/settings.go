// Package settings holds what an administrator chose for a cluster: address ranges, MTU, DNS domain. Every Patchbay
// process of a cluster reads the same file, so that none of them guesses. The package reads and checks the file; it must
// not know how the values are used.
package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// Settings are the choices of one cluster. Lists hold at most one IPv4 and one IPv6 entry; the first family is the
// cluster's primary family.
type Settings struct {
	// ClusterName names the local cluster ("default").
	ClusterName string `json:"clusterName"`
	// ClusterCIDRs are the ranges that pods of the default network get addresses from.
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	// NodePrefixLen4 and NodePrefixLen6 are the prefix lengths of one node's slice of ClusterCIDRs.
	NodePrefixLen4 int `json:"nodePrefixLen4"`
	NodePrefixLen6 int `json:"nodePrefixLen6"`
	// ServiceCIDRs are the ranges that Services get cluster IPs from.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// ClusterDNS are the cluster IPs of the DNS service, each inside ServiceCIDRs.
	ClusterDNS []netip.Addr `json:"clusterDNS"`
	// ClusterDomain is the DNS suffix of the cluster ("cluster.local").
	ClusterDomain string `json:"clusterDomain"`
	// FabricMTU is the MTU in bytes of the network that joins the nodes.
	FabricMTU int `json:"fabricMTU"`
	// PodMTU is the MTU in bytes that pods and guests of the default network see; at least OverlayOverhead less than FabricMTU.
	PodMTU int `json:"podMTU"`
	// APIServer is how hosts and pods without cluster DNS reach the API server ("https://172.30.0.1:6443").
	APIServer string `json:"apiServer"`
	// ControlPlane are the addresses of the host that runs the control plane, in the fabric.
	ControlPlane []netip.Addr `json:"controlPlane"`
	// LauncherImage is the image of a VM pod's compute container.
	LauncherImage string `json:"launcherImage"`
	// ManageHostNetwork lets agents that run in a host's own network namespace carry out NodeNetworkConfigurationPolicies there.
	ManageHostNetwork bool `json:"manageHostNetwork,omitempty"`
}

// OverlayOverhead is what a Geneve frame adds to a packet, rounded up as the field does, in bytes: 58 over IPv4, 78 over IPv6.
const OverlayOverhead = 100

// Default are the settings of a local cluster called "default" with a fabric of ordinary Ethernet MTU.
func Default() Settings {
	return Settings{
		ClusterName:    "default",
		ClusterCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14"), netip.MustParsePrefix("fd00:10:128::/48")},
		NodePrefixLen4: 23,
		NodePrefixLen6: 64,
		ServiceCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		ClusterDNS:     []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:10:96::a")},
		ClusterDomain:  "cluster.local",
		FabricMTU:      1500,
		PodMTU:         1400,
		APIServer:      "https://172.30.0.1:6443",
		ControlPlane:   []netip.Addr{netip.MustParseAddr("172.30.0.1"), netip.MustParseAddr("fd00:172:30::1")},
		LauncherImage:  "patchbay.io/launcher:latest",
	}
}

// Load reads and checks the settings in a JSON file.
func Load(path string) (Settings, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Settings{}, fmt.Errorf("read cluster settings: %w", err)
	}
	var s Settings
	if err := json.Unmarshal(data, &s); err != nil {
		return Settings{}, fmt.Errorf("cluster settings %s: %w", path, err)
	}
	if err := s.Validate(); err != nil {
		return Settings{}, fmt.Errorf("cluster settings %s: %w", path, err)
	}
	return s, nil
}

// Save writes the settings to a file that Load reads.
func (s Settings) Save(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// Validate returns every contradiction in the settings.
func (s Settings) Validate() error {
	var errs []error
	if len(s.ClusterCIDRs) == 0 || len(s.ClusterCIDRs) > 2 {
		errs = append(errs, fmt.Errorf("clusterCIDRs: want one or two ranges, have %d", len(s.ClusterCIDRs)))
	}
	if !sameFamilies(s.ClusterCIDRs, s.ServiceCIDRs) {
		errs = append(errs, errors.New("clusterCIDRs and serviceCIDRs must have the same IP families in the same order"))
	}
	for _, c := range s.ClusterCIDRs {
		if c.Masked() != c {
			errs = append(errs, fmt.Errorf("clusterCIDRs: %s has host bits set; write %s", c, c.Masked()))
		}
		for _, v := range s.ServiceCIDRs {
			if c.Overlaps(v) {
				errs = append(errs, fmt.Errorf("clusterCIDRs %s and serviceCIDRs %s overlap; choose disjoint ranges", c, v))
			}
		}
		if length := s.NodePrefixLen(c.Addr()); length <= c.Bits() {
			errs = append(errs, fmt.Errorf("node prefix length /%d leaves no slices in %s; choose a longer one", length, c))
		}
	}
	if s.PodMTU < 1280 || s.PodMTU > s.FabricMTU-OverlayOverhead {
		errs = append(errs, fmt.Errorf("podMTU %d must lie between 1280 and fabricMTU %d less %d", s.PodMTU, s.FabricMTU, OverlayOverhead))
	}
	return errors.Join(errs...)
}

// NodePrefixLen is the prefix length of one node's slice in the family of a.
func (s Settings) NodePrefixLen(a netip.Addr) int {
	if a.Is4() {
		return s.NodePrefixLen4
	}
	return s.NodePrefixLen6
}

func sameFamilies(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Addr().Is4() != b[i].Addr().Is4() {
			return false
		}
	}
	return true
}
