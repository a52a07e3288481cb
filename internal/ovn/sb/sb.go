// Package sb holds models of the few tables of the OVN Southbound database that Patchbay writes; the rest of that database
// belongs to northd and to the nodes.
package sb

//go:generate go run ../modelgen -package sb -schema ../schema/ovn-sb.ovsschema -tables Chassis,Chassis_Private
