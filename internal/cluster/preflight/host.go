package preflight

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/namespace"
)

// Host checks what every `up` needs.
func Host(home, dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("patchbay makes network namespaces and mounts, which needs root; run it with sudo")
	}
	_, err := Programs()
	return errors.Join(err, checkDirectory(home, dir))
}

// longestSocket is the longest path of a socket below a cluster's directory.
const longestSocket = "/nodes/node-200/kubelet/device-plugins/kubelet.sock"

// maxSocketPath is what fits into struct sockaddr_un.
const maxSocketPath = 107

// hiddenDirs are replaced inside the nodes' mount namespaces, so state below them would vanish.
var hiddenDirs = []string{"/run", "/var/run", "/var/log", "/proc", "/sys", "/dev"}

func checkDirectory(home, dir string) error {
	if excess := len(dir) + len(longestSocket) - maxSocketPath; excess > 0 {
		return fmt.Errorf("the path %s is %d bytes too long for the sockets below it; choose a shorter --name or set %s to a shorter directory",
			dir, excess, layout.HomeVariable)
	}
	for _, hidden := range hiddenDirs {
		if home == hidden || strings.HasPrefix(home, hidden+"/") {
			return fmt.Errorf("%s cannot lie below %s, which the nodes do not see; choose another directory", layout.HomeVariable, hidden)
		}
	}
	return nil
}

// Memory that a cluster takes without virtual machines, in MiB. Measured: see docs/design/0001-local-cluster.md.
const (
	controlPlaneMemory = 900
	nodeMemory         = 250
)

// NewCluster checks what a cluster needs that does not exist yet.
func NewCluster(c layout.Cluster, nodes, port int) error {
	return errors.Join(checkMemory(nodes), checkInotify(nodes), checkPort(port), checkNamespaces(c, nodes))
}

func checkMemory(nodes int) error {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	available, err := availableMemory(string(info))
	if err != nil {
		return err
	}
	return enoughMemory(available, nodes)
}

func enoughMemory(available, nodes int) error {
	if needed := controlPlaneMemory + nodes*nodeMemory; available < needed {
		return fmt.Errorf("%d MiB of memory are free, and a cluster of %d nodes needs %d MiB; free some, or use fewer --nodes", available, nodes, needed)
	}
	return nil
}

// availableMemory is the kernel's estimate in MiB.
func availableMemory(meminfo string) (int, error) {
	for line := range strings.Lines(meminfo) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/meminfo does not tell how much memory is available")
}

func checkPort(port int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return fmt.Errorf("port %d on 127.0.0.1 is taken (%w); choose another with --api-port", port, err)
	}
	return listener.Close()
}

// Inotify instances that a cluster's processes hold. They are counted per user of the host, and the usual limit is 128.
const (
	controlPlaneInotify = 14
	nodeInotify         = 10
)

const inotifyLimit = "/proc/sys/fs/inotify/max_user_instances"

func checkInotify(nodes int) error {
	data, err := os.ReadFile(inotifyLimit)
	if err != nil {
		return err
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("%s: %w", inotifyLimit, err)
	}
	return enoughInotify(limit, usedInotify(), nodes)
}

func enoughInotify(limit, used, nodes int) error {
	needed := controlPlaneInotify + nodes*nodeInotify
	if used+needed <= limit {
		return nil
	}
	return fmt.Errorf("this host allows %d inotify instances, %d are in use, and a cluster of %d nodes needs %d; allow more with: sysctl -w fs.inotify.max_user_instances=%d",
		limit, used, nodes, needed, max(1024, 2*limit))
}

// usedInotify counts the instances of all processes of this user.
func usedInotify() int {
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	used := 0
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil && target == "anon_inode:inotify" && ownedByUs(file) {
			used++
		}
	}
	return used
}

func ownedByUs(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == os.Geteuid()
}

// checkNamespaces finds a cluster of the same name that has another home directory.
func checkNamespaces(c layout.Cluster, nodes int) error {
	names := []string{c.FabricNamespace()}
	for _, node := range c.Nodes(nodes) {
		names = append(names, node.Namespace())
	}
	for _, name := range names {
		if namespace.NetworkInode(name) != 0 {
			return fmt.Errorf("the network namespace %s exists, but %s holds no cluster: one of the same name lives under another %s; choose another --name, or remove that cluster with `patchbay down`",
				name, c.Dir(), layout.HomeVariable)
		}
	}
	return nil
}
