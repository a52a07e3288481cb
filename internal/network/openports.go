package network

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"patchbay/internal/topology"
)

// openPortsAnnotation lists ports that a pod whose primary network is a tenant's leaves open to the default network:
//
//   - protocol: tcp
//     port: 9100
//   - protocol: icmp
const openPortsAnnotation = "k8s.ovn.org/open-default-ports"

// openPorts are the ports that a pod opened; none when its list is not readable.
func (n *Network) openPorts(pod *corev1.Pod) []topology.OpenPort {
	ports, err := parseOpenPorts(pod.Annotations[openPortsAnnotation])
	if err != nil {
		n.warn(pod, reasonOpenPorts, "annotation %s: %v; no port is open to the default network", openPortsAnnotation, err)
	}
	return ports
}

func parseOpenPorts(text string) ([]topology.OpenPort, error) {
	var list []struct {
		Protocol string `json:"protocol"`
		Port     *int   `json:"port"`
	}
	if err := yaml.UnmarshalStrict([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("want a list of protocol and port: %w", err)
	}
	var out []topology.OpenPort
	for i, entry := range list {
		protocol := strings.ToLower(entry.Protocol)
		switch protocol {
		case "icmp":
			if entry.Port != nil {
				return nil, fmt.Errorf("entry %d: icmp has no ports; leave port out", i+1)
			}
			out = append(out, topology.OpenPort{Protocol: protocol})
		case "tcp", "udp", "sctp":
			if entry.Port == nil || *entry.Port < 0 || *entry.Port > 65535 {
				return nil, fmt.Errorf("entry %d: %s needs a port from 0 to 65535", i+1, protocol)
			}
			out = append(out, topology.OpenPort{Protocol: protocol, Port: uint16(*entry.Port)})
		default:
			return nil, fmt.Errorf("entry %d: protocol %q is none of tcp, udp, sctp and icmp", i+1, entry.Protocol)
		}
	}
	return out, nil
}
