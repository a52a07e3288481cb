// Package migration moves machines between the two nodes of a real local cluster while they talk: again and again, and with everything that can
// go wrong in the middle of it. Whatever happens, one QEMU runs the guest, its network works, and the migration says how it ended.
package migration

import (
	"cmp"
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"patchbay/test/local"
)

// limit bounds every wait; no test measures time, a loaded machine takes a multiple.
const limit = 5 * time.Minute

var lab *local.Cluster

var keep = flag.Bool("keep", false, "leave the cluster running, to look at it")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(local.Main(m, &lab, *keep, func(ctx context.Context) (*local.Cluster, error) {
		// Another name lets several trees of the repository be tested on one machine at the same time.
		return local.Up(ctx, cmp.Or(os.Getenv("PATCHBAY_TEST_CLUSTER"), "migration"), 2)
	}))
}
