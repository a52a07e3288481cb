package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/version"

	"patchbay/internal/podnetworks"
)

// ErrOther says that a definition belongs to another CNI plugin, which is no fault.
var ErrOther = errors.New("not a network of the overlay (type " + Type + ")")

// networkName is what CNI lets a network be called.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}$`)

// Default join ranges of a primary network.
var defaultJoin = []netip.Prefix{netip.MustParsePrefix("100.65.0.0/16"), netip.MustParsePrefix("fd99::/64")}

// Prefix lengths of one node's slice of a layer3 network that says none.
const (
	defaultHostBits4 = 24
	defaultHostBits6 = 64
)

// config is the JSON of a definition's spec.config.
type config struct {
	CNIVersion     string          `json:"cniVersion"`
	Name           string          `json:"name"`
	Type           string          `json:"type"`
	Plugins        []config        `json:"plugins"`
	Definition     string          `json:"netAttachDefName"`
	Topology       Topology        `json:"topology"`
	Role           string          `json:"role"`
	MTU            int             `json:"mtu"`
	Subnets        string          `json:"subnets"`
	Excluded       string          `json:"excludeSubnets"`
	Reserved       string          `json:"reservedSubnets"`
	Infrastructure string          `json:"infrastructureSubnets"`
	Gateways       string          `json:"defaultGatewayIPs"`
	Join           string          `json:"joinSubnet"`
	Transit        string          `json:"transitSubnet"`
	Persistent     bool            `json:"allowPersistentIPs"`
	Physical       string          `json:"physicalNetworkName"`
	VLAN           int             `json:"vlanID"`
	IPAM           json.RawMessage `json:"ipam"`
}

// Parse reads the configuration in a definition, whose name is given as NAMESPACE/NAME, and checks it. A configuration of
// another plugin is ErrOther. One of our type without a topology names the cluster's default network; all that is known of
// it is its name (see Network.IsDefault).
func Parse(definition, text string) (Network, error) {
	c, err := decode(text)
	if err != nil {
		return Network{}, err
	}
	if c.Type != Type {
		return Network{}, fmt.Errorf("type %q: %w", c.Type, ErrOther)
	}
	if c.Topology == "" {
		return Network{Name: podnetworks.Default}, nil
	}
	if err := c.checkNames(definition); err != nil {
		return Network{}, err
	}
	n, err := c.network()
	if err != nil {
		return Network{}, err
	}
	return n, n.validate()
}

// IsDefault tells whether this is the cluster's default network, whose addresses the cluster's settings say.
func (n Network) IsDefault() bool { return n.Topology == "" }

// decode reads a configuration, or a list that holds exactly one.
func decode(text string) (config, error) {
	var c config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return c, fmt.Errorf("spec.config is not a CNI configuration in JSON: %w", err)
	}
	switch {
	case c.Plugins == nil:
		return c, nil
	case len(c.Plugins) == 1:
		only := c.Plugins[0]
		only.Name, only.CNIVersion = c.Name, c.CNIVersion
		return only, nil
	case !slices.ContainsFunc(c.Plugins, func(p config) bool { return p.Type == Type }):
		return config{Type: "list of plugins"}, nil
	}
	return c, fmt.Errorf("spec.config lists %d plugins; %s cannot be chained, list it alone", len(c.Plugins), Type)
}

func (c config) checkNames(definition string) error {
	switch {
	case c.Definition != definition:
		return fmt.Errorf("net-attach-def name (%s) is inconsistent with config (%s)", definition, c.Definition)
	case !networkName.MatchString(c.Name):
		return fmt.Errorf("name %q is not a network's name; use letters, digits, dots, hyphens and underscores, beginning with a letter or digit", c.Name)
	case c.Name == podnetworks.Default || c.Name == "ovn-kubernetes":
		return fmt.Errorf("name %q is reserved for the cluster's default network; choose another", c.Name)
	case c.CNIVersion != "" && !slices.Contains(version.All.SupportedVersions(), c.CNIVersion):
		return fmt.Errorf("cniVersion %q is not known; write 0.3.1 or one of %s", c.CNIVersion, strings.Join(version.All.SupportedVersions(), ", "))
	case c.hasIPAM():
		return errors.New("IPAM key is not supported. Use OVN-K provided IPAM via the `subnets` attribute")
	}
	return nil
}

// hasIPAM tells whether addresses are asked for in another plugin's way, complete or not: a subnet without a type would be ignored.
func (c config) hasIPAM() bool {
	var ipam map[string]json.RawMessage
	return len(c.IPAM) > 0 && (json.Unmarshal(c.IPAM, &ipam) != nil || len(ipam) > 0)
}

// network converts every field by itself; what fields mean together is validate's.
func (c config) network() (Network, error) {
	n := Network{
		Name: c.Name, Topology: c.Topology, MTU: c.MTU, Persistent: c.Persistent, Physical: c.Physical, VLAN: c.VLAN,
	}
	var errs []error
	var err error
	if n.Role, err = parseRole(c.Role); err != nil {
		errs = append(errs, err)
	}
	if n.Subnets, err = parseSubnets(c.Subnets, c.Topology == Layer3); err != nil {
		errs = append(errs, err)
	}
	if n.Gateways, err = parseAddresses("defaultGatewayIPs", c.Gateways); err != nil {
		errs = append(errs, err)
	}
	for _, list := range []struct {
		key, text string
		to        *[]netip.Prefix
	}{
		{"excludeSubnets", c.Excluded, &n.Excluded}, {"reservedSubnets", c.Reserved, &n.Reserved},
		{"infrastructureSubnets", c.Infrastructure, &n.Infrastructure},
		{"joinSubnet", c.Join, &n.Join}, {"transitSubnet", c.Transit, &n.Transit},
	} {
		if *list.to, err = parsePrefixes(list.key, list.text); err != nil {
			errs = append(errs, err)
		}
	}
	n.fill()
	return n, errors.Join(errs...)
}

// fill says what follows when nothing is said.
func (n *Network) fill() {
	if n.Topology == Localnet && n.Physical == "" {
		n.Physical = n.Name
	}
	if n.Role == podnetworks.Primary && len(n.Join) == 0 {
		n.Join = slices.Clone(defaultJoin)
	}
	// In the order of the subnets, so that two spellings of one network are equal.
	slices.SortStableFunc(n.Gateways, func(a, b netip.Addr) int { return n.familyIndex(a) - n.familyIndex(b) })
}

func (n *Network) familyIndex(a netip.Addr) int {
	return slices.IndexFunc(n.Subnets, func(s Subnet) bool { return s.CIDR.Addr().Is4() == a.Is4() })
}

func parseRole(text string) (podnetworks.Role, error) {
	switch podnetworks.Role(text) {
	case "", podnetworks.Secondary:
		return podnetworks.Secondary, nil
	case podnetworks.Primary:
		return podnetworks.Primary, nil
	}
	return "", fmt.Errorf("role %q is not known; write primary or secondary", text)
}

// parseSubnets reads "CIDR,CIDR", in layer3 networks "CIDR/HOSTBITS,…".
func parseSubnets(text string, sliced bool) ([]Subnet, error) {
	var subnets []Subnet
	for item := range items(text) {
		cidr, bits := item, ""
		if sliced && strings.Count(item, "/") == 2 {
			at := strings.LastIndex(item, "/")
			cidr, bits = item[:at], item[at+1:]
		}
		prefix, err := parsePrefix("subnets", cidr)
		if err != nil {
			return nil, err
		}
		s := Subnet{CIDR: prefix.Masked()}
		if sliced {
			if s.HostBits, err = hostBits(prefix, bits); err != nil {
				return nil, err
			}
		}
		subnets = append(subnets, s)
	}
	return subnets, nil
}

func hostBits(cidr netip.Prefix, text string) (int, error) {
	bits := defaultHostBits6
	if cidr.Addr().Is4() {
		bits = defaultHostBits4
	}
	if text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return 0, fmt.Errorf("subnets: host prefix length %q of %s is not a number", text, cidr)
		}
		bits = n
	}
	if bits <= cidr.Bits() || bits > cidr.Addr().BitLen()-2 {
		return 0, fmt.Errorf("subnets: a node's slice of %s cannot be a /%d; choose a length between /%d and /%d", cidr, bits, cidr.Bits()+1, cidr.Addr().BitLen()-2)
	}
	return bits, nil
}

// parsePrefixes reads "CIDR,CIDR"; an address alone is a range of one.
func parsePrefixes(key, text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for item := range items(text) {
		if a, err := netip.ParseAddr(item); err == nil && key == "excludeSubnets" && a.Zone() == "" {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := parsePrefix(key, item)
		if err != nil {
			return nil, err
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%s must be a masked network address (no host bits set): write %s for %s", key, p.Masked(), p)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}

func parsePrefix(key, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, fmt.Errorf("%s: %q is not a range such as 10.100.0.0/16 or fd00:100::/64", key, text)
	}
	return p, nil
}

func parseAddresses(key, text string) ([]netip.Addr, error) {
	var addresses []netip.Addr
	for item := range items(text) {
		a, err := netip.ParseAddr(item)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			return nil, fmt.Errorf("%s: %q is not an IP address", key, item)
		}
		addresses = append(addresses, a)
	}
	return addresses, nil
}

// items are the parts of a list with commas; an empty text has none.
func items(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		if strings.TrimSpace(text) == "" {
			return
		}
		for part := range strings.SplitSeq(text, ",") {
			if !yield(strings.TrimSpace(part)) {
				return
			}
		}
	}
}
