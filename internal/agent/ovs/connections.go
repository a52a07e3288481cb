package ovs

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// zonePrefix begins the key of br-int's external_ids where ovn-controller keeps the conntrack zone of a logical port.
const zonePrefix = "ct-zone-"

// ForgetConnections has the switch forget what it knows of the connections of a plugged device's logical port. They go on, and are tracked
// anew from what is seen of them next.
func (c *Client) ForgetConnections(ctx context.Context, name string) error {
	iface, bridge := c.iface(name), c.bridge(IntegrationBridge)
	if iface == nil || bridge == nil {
		return fmt.Errorf("device %s is not plugged", name)
	}
	zone, known := bridge.ExternalIDs[zonePrefix+iface.ExternalIDs[keyPort]]
	if !known {
		return nil // ovn-controller has never tracked any
	}
	// The switch takes OpenFlow beside its database.
	control := filepath.Join(filepath.Dir(strings.TrimPrefix(c.endpoint, "unix:")), IntegrationBridge+".mgmt")
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "ovs-ofctl", "ct-flush-zone", "unix:"+control, zone)
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("forget the connections of device %s: %w: %s", name, err, strings.TrimSpace(complaint.String()))
	}
	return nil
}
