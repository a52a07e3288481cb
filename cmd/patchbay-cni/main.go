// Command patchbay-cni is the CNI plugin of Patchbay: it passes the call to the node agent and prints the answer.
package main

import (
	"context"
	"os"

	"patchbay/internal/agent/cni/shim"
)

func main() {
	os.Exit(shim.Run(context.Background(), os.Getenv, os.Stdin, os.Stdout))
}
