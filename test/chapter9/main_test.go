// Package chapter9 tests the numbered statements of package statement on one local cluster of two nodes with real guests. A
// sub-test's name starts with the statement it proves; `make chapter9` prints the table.
package chapter9

import (
	"cmp"
	"context"
	"flag"
	"os"
	"testing"

	"patchbay/test/local"
)

// cluster is shared by all tests of the package. Its fabric carries jumbo frames, as 9.2.3 wants; everything else must not care.
var cluster *local.Cluster

const fabricMTU = "9100"

var keep = flag.Bool("keep", false, "leave the cluster running, to look at it")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(local.Main(m, &cluster, *keep, func(ctx context.Context) (*local.Cluster, error) {
		// Another name lets several trees of the repository be tested on one machine at the same time.
		name := cmp.Or(os.Getenv("PATCHBAY_TEST_CLUSTER"), "chapter9")
		return local.Up(ctx, name, 2, "--mtu", fabricMTU, "--extra-nic", "1")
	}))
}
