// Package openvswitch prepares the databases of Open vSwitch and OVN before their daemons start, and asks running daemons for their
// state. What goes through the switches is decided elsewhere.
package openvswitch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Where Debian's packages put the schemas; other distributions use the same places.
const (
	VSwitchSchema = "/usr/share/openvswitch/vswitch.ovsschema"
	NBSchema      = "/usr/share/ovn/ovn-nb.ovsschema"
	SBSchema      = "/usr/share/ovn/ovn-sb.ovsschema"
)

// IntegrationBridge is the bridge that OVN programs.
const IntegrationBridge = "br-int"

// EnsureDatabase makes a database file unless it exists, and converts one with an older schema.
func EnsureDatabase(ctx context.Context, file, schema string) error {
	if _, err := os.Stat(file); err == nil {
		return convertDatabase(ctx, file, schema)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	// Made under another name first: a half-written file would not be repaired by a second try.
	temporary := file + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := run(ctx, "ovsdb-tool", "create", temporary, schema); err != nil {
		return err
	}
	if schema == SBSchema {
		// ovn-controller 23.03 that is connected when northd makes this row, the first of all, crashes (signal 11).
		if _, err := run(ctx, "ovsdb-tool", "transact", temporary, `["OVN_Southbound",{"op":"insert","table":"SB_Global","row":{}}]`); err != nil {
			return err
		}
	}
	return os.Rename(temporary, file)
}

func convertDatabase(ctx context.Context, file, schema string) error {
	needed, err := run(ctx, "ovsdb-tool", "needs-conversion", file, schema)
	if err != nil || strings.TrimSpace(needed) != "yes" {
		return err
	}
	_, err = run(ctx, "ovsdb-tool", "convert", file, schema)
	return err
}

// Chassis is what a node's switch and its OVN controller have to know.
type Chassis struct {
	Database    string // "unix:PATH"
	Name        string // system-id; the node's name
	EncapIPs    []string
	Southbound  string // "ssl:172.30.0.1:6642"
	Key         string // file, mutual TLS with the southbound database
	Certificate string
	Authority   string
	Datapath    string // "netdev" or "system"
	Uplink      string // device that becomes a port of Bridge
	Bridge      string
	BridgeMAC   string
	MTU         int
}

// EnsureChassis writes the node's configuration into its database. It does not wait for the switch, so that it may run before it.
func EnsureChassis(ctx context.Context, c Chassis) error {
	args := []string{"--db=" + c.Database, "--no-wait", "--timeout=20", "init",
		"--", "set-ssl", c.Key, c.Certificate, c.Authority,
		"--", "set", "Open_vSwitch", ".",
		"external_ids:system-id=" + c.Name,
		"external_ids:hostname=" + c.Name,
		"external_ids:ovn-remote=" + quote(c.Southbound),
		"external_ids:ovn-encap-type=geneve",
		"external_ids:ovn-encap-ip=" + quote(strings.Join(c.EncapIPs, ",")),
		"external_ids:ovn-bridge=" + IntegrationBridge,
		"external_ids:ovn-bridge-datapath-type=" + c.Datapath,
		// A busy switch must not lose its controller over an unanswered probe.
		"external_ids:ovn-openflow-probe-interval=60",
		"other_config:vlan-limit=0",
	}
	args = append(args, c.bridge(IntegrationBridge)...)
	args = append(args, "fail_mode=secure")
	args = append(args, c.bridge(c.Bridge)...)
	args = append(args, "other_config:hwaddr="+quote(c.BridgeMAC))
	args = append(args, "--", "--may-exist", "add-port", c.Bridge, c.Uplink,
		"--", "set", "Interface", c.Bridge, fmt.Sprintf("mtu_request=%d", c.MTU))
	_, err := run(ctx, "ovs-vsctl", args...)
	return err
}

// How long ovn-controller waits, once connected to the switch, before it clears the switch's flows and puts in its own.
const (
	// KeepFlows is for a new ovn-controller, which does not know its flows yet, and a switch that still forwards by the old ones.
	KeepFlows = 8 * time.Second
	// ReplaceFlows is for a new switch, which forwards nothing until it has flows.
	ReplaceFlows = time.Duration(0)
)

// SetFlowWait writes how long ovn-controller waits at its next connection to the switch.
func SetFlowWait(ctx context.Context, database string, wait time.Duration) error {
	_, err := run(ctx, "ovs-vsctl", "--db="+database, "--no-wait", "--timeout=20", "set", "Open_vSwitch", ".",
		fmt.Sprintf("external_ids:ovn-ofctrl-wait-before-clear=%d", wait.Milliseconds()))
	return err
}

// HasFlows says whether the switch whose sockets lie in a directory forwards by an earlier ovn-controller's flows.
func HasFlows(ctx context.Context, rundir string) bool {
	out, err := run(ctx, "ovs-ofctl", "--timeout=5", "dump-aggregate", "unix:"+filepath.Join(rundir, IntegrationBridge+".mgmt"))
	return err == nil && !strings.Contains(out, "flow_count=0")
}

func (c Chassis) bridge(name string) []string {
	return []string{"--", "--may-exist", "add-br", name, "--", "set", "Bridge", name, "datapath_type=" + c.Datapath}
}

// quote protects punctuation from the database tools' syntax.
func quote(s string) string { return `"` + s + `"` }

// ReadDatapath gives the datapath type that a node was set up with, from its database.
func ReadDatapath(ctx context.Context, database string) (string, error) {
	out, err := run(ctx, "ovs-vsctl", "--db="+database, "--no-wait", "--timeout=5", "--if-exists", "get", "Open_vSwitch", ".", "external_ids:ovn-bridge-datapath-type")
	return strings.Trim(strings.TrimSpace(out), `"`), err
}

// Control sends a command to a daemon's control socket and returns its answer.
func Control(ctx context.Context, socket, command string, args ...string) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if args == nil {
		args = []string{}
	}
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 0, "method": command, "params": args}); err != nil {
		return "", fmt.Errorf("ask %s for %s: %w", socket, command, err)
	}
	var answer struct {
		Result string `json:"result"`
		Error  string `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return "", fmt.Errorf("ask %s for %s: %w", socket, command, err)
	}
	if answer.Error != "" {
		return "", fmt.Errorf("%s answers %s with: %s", socket, command, strings.TrimSpace(answer.Error))
	}
	return strings.TrimSpace(answer.Result), nil
}

func run(ctx context.Context, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
