// Package chaos kills one process after another of a real local cluster, while machines run on both nodes and talk, and looks at
// what is left: each ends in the documented state, and the others lose nothing beyond what is documented (docs/local-cluster.md).
package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"patchbay/test/local"
)

// limit bounds every wait; no test measures time, a loaded machine takes a multiple.
const limit = 5 * time.Minute

var lab *local.Cluster

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(local.Main(m, &lab, false, func(ctx context.Context) (*local.Cluster, error) {
		return local.Up(ctx, fmt.Sprintf("ch%d", os.Getpid()%100000), 2)
	}))
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// engineOf finds the QEMU of a machine on this host, and its launcher.
func engineOf(t *testing.T, namespace, name string) (qemu, launcher int) {
	t.Helper()
	programs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range programs {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "guest="+namespace+"_"+name+",") {
			continue
		}
		qemu, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(path), "stat"))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		launcher, _ = strconv.Atoi(fields[1])
		return qemu, launcher
	}
	t.Fatalf("no QEMU runs %s/%s", namespace, name)
	return 0, 0
}
