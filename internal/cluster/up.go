package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/preflight"
	"patchbay/internal/cluster/supervise"
)

// UpRequest is what the user asks of Up. Zero values mean: as it is, or the default for a new cluster.
type UpRequest struct {
	Cluster layout.Cluster
	Nodes   int
	APIPort int
	MTU     int
	Expose  bool
	// ExtraNICs is how many further cards every node gets.
	ExtraNICs int
	// Report is told about progress; it may be nil.
	Report func(Progress)
}

// Defaults of a new cluster.
const (
	DefaultNodes   = 2
	DefaultAPIPort = 6443
	DefaultMTU     = 1500
)

// Up starts the cluster, heals one that lost processes, and returns when all nodes are ready. Interrupted, it may be repeated.
func Up(ctx context.Context, r UpRequest) (Status, error) {
	if err := preflight.Host(r.Cluster.Home, r.Cluster.Dir()); err != nil {
		return Status{}, err
	}
	held, err := lockCluster(r.Cluster)
	if err != nil {
		return Status{}, err
	}
	defer held.release()
	spec, isNew, err := r.spec()
	if err != nil {
		return Status{}, errors.Join(err, leaveNoTrace(r.Cluster, held))
	}
	if isNew {
		if err := preflight.NewCluster(r.Cluster, spec.Nodes, spec.APIPort); err != nil {
			return Status{}, errors.Join(err, leaveNoTrace(r.Cluster, held))
		}
	}
	if err := spec.writeFiles(r.Cluster); err != nil {
		return Status{}, err
	}
	supervisor, err := ensureSupervisor(ctx, r.Cluster)
	if err != nil {
		return Status{}, err
	}
	if err := waitUntilReady(ctx, r.Cluster, spec, supervisor, r.Report); err != nil {
		return Status{}, err
	}
	return ReadStatus(ctx, r.Cluster)
}

// leaveNoTrace undoes the locking of a cluster that was not made.
func leaveNoTrace(c layout.Cluster, held *lock) error {
	err := held.remove()
	_ = unix.Rmdir(c.Home) // stays when there are other clusters
	return err
}

// lockCluster keeps two commands from changing one cluster at the same time.
func lockCluster(c layout.Cluster) (*lock, error) {
	held, err := takeLock(c.LockFile())
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("another `patchbay up` or `patchbay down` works on cluster %q; wait until it is done", c.Name)
	}
	return held, err
}

// spec merges the request with the cluster that may already be there.
func (r UpRequest) spec() (spec Spec, isNew bool, err error) {
	spec, err = readSpec(r.Cluster)
	if errors.Is(err, errNoCluster) {
		if err := refuseForeignDirectory(r.Cluster.Dir()); err != nil {
			return Spec{}, false, err
		}
		spec = Spec{Name: r.Cluster.Name, Nodes: or(r.Nodes, DefaultNodes), APIPort: or(r.APIPort, DefaultAPIPort), MTU: or(r.MTU, DefaultMTU), Expose: r.Expose, ExtraNICs: r.ExtraNICs}
		return spec, true, spec.validate()
	}
	if err != nil {
		return Spec{}, false, err
	}
	return spec, false, r.contradiction(spec)
}

// contradiction tells what of a running cluster cannot become what was asked for. The port is not among it: any will do for
// a client that asks for the kubeconfig.
func (r UpRequest) contradiction(spec Spec) error {
	var errs []error
	differ := func(flag string, asked, is int) {
		if asked != 0 && asked != is {
			errs = append(errs, fmt.Errorf("cluster %q has %s %d, not %d; leave the flag out, or remove the cluster with `patchbay down --name %s` first",
				spec.Name, flag, is, asked, spec.Name))
		}
	}
	differ("--nodes", r.Nodes, spec.Nodes)
	differ("--mtu", r.MTU, spec.MTU)
	differ("--extra-nic", r.ExtraNICs, spec.ExtraNICs)
	if r.Expose && !spec.Expose {
		errs = append(errs, fmt.Errorf("cluster %q was started without --expose; remove it with `patchbay down --name %s` first", spec.Name, spec.Name))
	}
	return errors.Join(errs...)
}

// refuseForeignDirectory protects files that are not a cluster's.
func refuseForeignDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(entries) == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%s is not empty and holds no cluster; choose another --name, or look into it and remove it", dir)
}

// ensureSupervisor starts the supervisor unless it runs, detached from the terminal, and tells its process. When it or a component
// is of another version than the programs on disk, a new one takes over: it adopts what is up to date and starts the rest anew.
func ensureSupervisor(ctx context.Context, c layout.Cluster) (*supervise.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if process := supervisorProcess(c); process != nil {
		if supervise.RunsProgram(process.PID, self) && !outdated(c) {
			return process, nil
		}
		if err := process.Kill(ctx); err != nil {
			return nil, fmt.Errorf("replace the supervisor: %w", err)
		}
	}
	held, err := takeLock(supervisorLock(c))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("somebody runs `patchbay supervise` for cluster %q by hand; end it and try again", c.Name)
	}
	if err != nil {
		return nil, err
	}
	// What the states say is older than the supervisor that starts now.
	err = supervise.Forget(c.Run())
	held.release()
	if err != nil {
		return nil, err
	}
	return startSupervisor(c, self)
}

// outdated tells whether a component runs a program that was replaced on disk.
func outdated(c layout.Cluster) bool {
	states, err := supervise.ReadStates(c.Run())
	if err != nil {
		return false // the wait for the components will say what is wrong with the file
	}
	return slices.ContainsFunc(states, func(s supervise.State) bool {
		return len(s.Command) > 0 && s.Process.Alive() && !supervise.RunsProgram(s.Process.PID, s.Command[0])
	})
}

func startSupervisor(c layout.Cluster, self string) (*supervise.Process, error) {
	path := supervise.LogPath(c.Logs(), supervisorUnit)
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(self, "supervise", "--name", c.Name)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", layout.HomeVariable + "=" + c.Home, supervise.MarkPrefix(c.Dir()) + supervisorUnit}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	process, err := supervise.Identify(cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("the supervisor ended at once; look into %s", path)
	}
	data := fmt.Appendf(nil, "%d\n", cmd.Process.Pid)
	return &process, errors.Join(replaceFile(filepath.Join(c.Run(), "supervisor.pid"), data, 0o644), cmd.Process.Release())
}

func or(value, fallback int) int {
	if value == 0 {
		return fallback
	}
	return value
}

// upPoll is how often the state files and the nodes are looked at.
const upPoll = 100 * time.Millisecond
