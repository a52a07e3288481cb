// Package examples carries the manifests of this directory inside the program, so that they work without a checkout.
package examples

import _ "embed"

// Quickstart is two virtual machines on two nodes and a Service over them.
//
//go:embed quickstart.yaml
var Quickstart []byte
