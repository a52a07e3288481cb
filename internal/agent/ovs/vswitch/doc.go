// Package vswitch holds the generated models of the tables of Open vSwitch's database that the agent uses. A model with a
// column that the server does not know makes the client refuse to connect, so they are generated from the oldest supported
// version, OVS 3.1.
package vswitch

//go:generate go run patchbay/internal/ovn/modelgen -package vswitch -schema /usr/share/openvswitch/vswitch.ovsschema -tables Bridge,Interface,Open_vSwitch,Port
