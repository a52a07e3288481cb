// Package chapter9 tests the numbered statements of package statement on one local cluster of two nodes with real guests. A
// sub-test's name starts with the statement it proves; `make chapter9` prints the table.
package chapter9

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"patchbay/test/local"
)

// cluster is shared by all tests of the package. Its fabric carries jumbo frames, as 9.2.3 wants; everything else must not care.
var cluster *local.Cluster

const fabricMTU = "9100"

var keep = flag.Bool("keep", false, "leave the cluster running, to look at it")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var err error
	// Another name lets several trees of the repository be tested on one machine at the same time.
	name := cmp.Or(os.Getenv("PATCHBAY_TEST_CLUSTER"), "chapter9")
	cluster, err = local.Up(ctx, name, 2, "--mtu", fabricMTU, "--extra-nic", "1")
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	code := m.Run()
	if *keep {
		return code
	}
	down, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := cluster.Gone(down); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := cluster.Down(down); err != nil {
		fmt.Fprintln(os.Stderr, "remove the cluster:", err)
		return 1
	}
	return code
}
