// Package teardown removes everything that a local cluster made on this host, whatever state it is in and whether or not anything of
// it still runs. It finds processes by what only the cluster can have given them, never by their name.
package teardown

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"patchbay/internal/cluster/cgroup"
	"patchbay/internal/cluster/supervise"
)

// Identity is how a process shows that it belongs to a cluster. One trait is enough.
type Identity struct {
	Mark       string          // in the environment, see supervise.Config
	Namespaces map[uint64]bool // inodes of the cluster's network and mount namespaces
	Cgroup     string          // the parent of all pods
}

// process is what is read of a process to decide.
type process struct {
	pid, parent int
	belongs     bool
	supervisor  bool
}

// find lists the processes of a cluster: those with one of its traits and all their descendants, but never the caller or its
// ancestors.
func (id Identity) find() (all []int, supervisors []int, err error) {
	processes, err := id.readAll()
	if err != nil {
		return nil, nil, err
	}
	spare := ancestors(processes, os.Getpid())
	for pid, p := range processes {
		if spare[pid] || !inherits(processes, p) {
			continue
		}
		all = append(all, pid)
		if p.supervisor {
			supervisors = append(supervisors, pid)
		}
	}
	return all, supervisors, nil
}

func (id Identity) readAll() (map[int]*process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	processes := make(map[int]*process, len(entries))
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p := id.read(pid); p != nil {
			processes[pid] = p
		}
	}
	return processes, nil
}

// read gives nil for a process that has ended, be it collected or not.
func (id Identity) read(pid int) *process {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil
	}
	text := string(stat)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return nil
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return nil
	}
	environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
	return &process{
		pid: pid, parent: parent,
		belongs:    id.marked(environment) || id.inNamespace(dir) || id.inCgroup(dir),
		supervisor: id.marked(environment) && supervise.IsMarked(pid, id.Mark, "supervisor"),
	}
}

func (id Identity) marked(environment []byte) bool {
	return bytes.Contains(append([]byte{0}, environment...), []byte("\x00"+supervise.MarkPrefix(id.Mark)))
}

func (id Identity) inNamespace(dir string) bool {
	for _, kind := range []string{"net", "mnt"} {
		var stat unix.Stat_t
		if unix.Stat(filepath.Join(dir, "ns", kind), &stat) == nil && id.Namespaces[stat.Ino] {
			return true
		}
	}
	return false
}

func (id Identity) inCgroup(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	return err == nil && cgroup.Holds(id.Cgroup, string(data))
}

// otherHome finds a cluster of the same name that lives under another home directory: its namespaces have the same names, its
// processes another mark. It returns that cluster's directory, empty when there is none.
func (id Identity) otherHome() (string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return "", fmt.Errorf("list processes: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join("/proc", entry.Name())
		if _, err := strconv.Atoi(entry.Name()); err != nil || !id.inNamespace(dir) {
			continue
		}
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		for variable := range bytes.SplitSeq(environment, []byte{0}) {
			mark, ok := strings.CutPrefix(string(variable), supervise.MarkVariable+"=")
			if !ok {
				continue
			}
			if home := mark[:max(0, strings.LastIndexByte(mark, ':'))]; home != "" && home != id.Mark {
				return home, nil
			}
		}
	}
	return "", nil
}

// inherits tells whether a process or one of its ancestors belongs to the cluster.
func inherits(processes map[int]*process, p *process) bool {
	for p != nil {
		if p.belongs {
			return true
		}
		p = processes[p.parent]
	}
	return false
}

func ancestors(processes map[int]*process, pid int) map[int]bool {
	found := map[int]bool{0: true, 1: true, pid: true}
	for p := processes[pid]; p != nil && p.pid != 1; p = processes[p.parent] {
		found[p.pid] = true
	}
	return found
}

// killAll ends the processes of a cluster: supervisors first, so that they start nothing again, and then over and over again
// until there is none left, because a process may have forked meanwhile.
func (id Identity) killAll(ctx context.Context) (int, error) {
	killed := 0
	for {
		all, supervisors, err := id.find()
		if err != nil || len(all) == 0 {
			return killed, err
		}
		if len(supervisors) > 0 {
			all = supervisors
		}
		killed += len(all)
		if err := kill(ctx, all); err != nil {
			return killed, err
		}
	}
}

// kill ends processes and waits until they have ended.
func kill(ctx context.Context, pids []int) error {
	var watched []unix.PollFd
	defer func() {
		for _, w := range watched {
			unix.Close(int(w.Fd))
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hold process %d: %w", pid, err)
		}
		watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return waitAll(ctx, watched)
}

// waitAll waits for every descriptor of a process to tell its end.
func waitAll(ctx context.Context, watched []unix.PollFd) error {
	const interval = 200 // milliseconds between looks at the context
	for _, w := range watched {
		one := []unix.PollFd{w}
		for one[0].Revents == 0 {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("a killed process does not end: %w; look for processes in state D with ps", err)
			}
			if _, err := unix.Poll(one, interval); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	return nil
}
