package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/supervise"
	"patchbay/internal/cluster/teardown"
)

// Down removes a cluster and all that it made on this host. A cluster that is not there is no error.
func Down(ctx context.Context, c layout.Cluster) (teardown.Report, error) {
	if os.Geteuid() != 0 {
		return teardown.Report{}, errors.New("removing a cluster needs root; run it with sudo")
	}
	held, err := lockCluster(c)
	if err != nil {
		return teardown.Report{}, err
	}
	if _, err := readSpec(c); errors.Is(err, errNoCluster) {
		if err := refuseForeignDirectory(c.Dir()); err != nil {
			held.release()
			return teardown.Report{}, err
		}
	}
	// A user's file that cannot be read keeps its entry; that must not keep the cluster.
	unmergeErr := unmergeKubeconfig(c)
	report, err := teardown.Run(ctx, c)
	if errors.Is(err, teardown.ErrOtherHome) {
		held.release()
		return report, err
	}
	if err != nil {
		held.release()
		return report, fmt.Errorf("cluster %q is not removed completely: %w; run `patchbay down` again", c.Name, err)
	}
	return report, errors.Join(unmergeErr, leaveNoTrace(c, held))
}

// supervisorProcess is the running supervisor, or nil.
func supervisorProcess(c layout.Cluster) *supervise.Process {
	data, err := os.ReadFile(filepath.Join(c.Run(), "supervisor.pid"))
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || !supervise.IsMarked(pid, c.Dir(), supervisorUnit) {
		return nil
	}
	process, err := supervise.Identify(pid)
	if err != nil {
		return nil
	}
	return &process
}
