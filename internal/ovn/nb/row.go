// Package nb describes rows of the OVN Northbound database: the models generated from the schema, and Row, a wanted row
// with a stable identity. It must not talk to a database.
package nb

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/model"
)

//go:generate go run ../modelgen -package nb -schema ../schema/ovn-nb.ovsschema -tables NB_Global,Logical_Switch,Logical_Switch_Port,Logical_Router,Logical_Router_Port,Logical_Router_Policy,Logical_Router_Static_Route,Gateway_Chassis,HA_Chassis_Group,HA_Chassis,NAT,Load_Balancer,Load_Balancer_Group,Address_Set,Port_Group,ACL,DHCP_Options,DNS,QoS,Static_MAC_Binding

// uuidSuffix ends the UUID of every row that Patchbay owns ("patc" in ASCII). Some tables have no external_ids, so ownership
// is visible in the identity itself. It stands at the end because OVS and OVN use the first 32 bits of a UUID as its hash:
// with equal first bits 10,000 rows took ovsdb-server 17 s instead of half a second.
const uuidSuffix = "70617463"

// Ref names a row by its table and a key that is unique there; the row's name where the table has names.
//
// The UUID of a row is a function of its Ref. So every writer that wants the same row means the same one, two of them
// cannot make twins in tables without a unique index, references need no look-up, and a database that was lost comes back
// with the very same identities: northd then finds nothing to change in the Southbound database and no packet is lost.
type Ref struct {
	Table string
	Key   string
}

// UUID of the row (version 8 of RFC 9562).
func (r Ref) UUID() string {
	sum := sha256.Sum256([]byte(r.Table + "\x00" + r.Key))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	h := hex.EncodeToString(sum[:12])
	return h[0:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:24] + uuidSuffix
}

// Owned tells whether a row with this UUID belongs to Patchbay.
func Owned(uuid string) bool { return strings.HasSuffix(uuid, uuidSuffix) }

// Row is one wanted row. Columns of Model that hold members (see Members) stay empty: they are said by Links. A reference
// in any other column is the UUID of a Ref.
type Row struct {
	Ref
	// Model is nil when only the links are said (see Membership).
	Model model.Model
	// Links put rows into member columns: this row into its parent's, or others into this row's.
	Links []Link
}

// Membership is a row of links alone: whoever wants the child itself, here it is a member of columns of others.
func Membership(child Ref) Row { return Row{Ref: child} }

// Link says that Child is a member of a set column of Parent. It takes effect while both rows exist.
type Link struct {
	Parent Ref
	Column string
	Child  Ref
}

// In is the link that puts the row itself into a column of a parent.
func (r Row) In(parent Ref, column string) Row {
	r.Links = append(r.Links, Link{Parent: parent, Column: column, Child: r.Ref})
	return r
}

// NewRow makes a row and gives the model its UUID.
func NewRow(table, key string, m model.Model) Row {
	row := Row{Ref: Ref{Table: table, Key: key}, Model: m}
	setString(m, "_uuid", row.UUID())
	return row
}

// Members are the set columns that Links fill, by table, with the table of the members. A Row never says them itself
// because their content comes from rows of many owners.
var Members = map[string]map[string]string{
	LogicalSwitchTable: {
		"ports": LogicalSwitchPortTable, "acls": ACLTable, "qos_rules": QoSTable,
		"load_balancer": LoadBalancerTable, "dns_records": DNSTable,
	},
	LogicalRouterTable: {
		"ports": LogicalRouterPortTable, "static_routes": LogicalRouterStaticRouteTable, "policies": LogicalRouterPolicyTable,
		"nat": NATTable, "load_balancer": LoadBalancerTable,
	},
	LogicalRouterPortTable: {"gateway_chassis": GatewayChassisTable},
	HAChassisGroupTable:    {"ha_chassis": HAChassisTable},
	LoadBalancerGroupTable: {"load_balancer": LoadBalancerTable},
	PortGroupTable:         {"ports": LogicalSwitchPortTable, "acls": ACLTable},
}

// volatile are columns that OVN itself writes.
var volatile = map[string][]string{
	LogicalSwitchPortTable: {"up", "dynamic_addresses", "tag"},
	LogicalRouterPortTable: {"ipv6_prefix"},
	NBGlobalTable:          {"nb_cfg", "nb_cfg_timestamp", "sb_cfg", "sb_cfg_timestamp", "hv_cfg", "hv_cfg_timestamp", "connections", "ssl", "name", "ipsec", "external_ids"},
}

// shared are map columns of which only the wanted keys are ours.
var shared = map[string][]string{
	NBGlobalTable: {"options"},
}
