// Command patchbay runs virtual machines on Kubernetes with first-class networking: the command line, the cluster's
// controller and the agent of every node, dispatched by the first argument.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := newRootCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "patchbay: "+err.Error())
		os.Exit(1)
	}
}
