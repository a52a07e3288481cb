package cluster

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// hostState is what a cluster must never change on its host.
func hostState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	for name, command := range map[string][]string{
		"addresses": {"ip", "-brief", "address"},
		"routes":    {"ip", "route", "show", "table", "all"},
		"rules":     {"nft", "list", "ruleset"},
		"loops":     {"losetup", "--list"},
	} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", command, err)
		}
		state[name] = string(out)
	}
	for _, key := range []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom",
		"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"} {
		data, err := os.ReadFile("/proc/sys/" + key)
		if err != nil {
			t.Fatal(err)
		}
		state[key] = string(data)
	}
	for _, dir := range []string{"/run/containerd", "/run/nri", "/var/lib/kubelet", "/var/lib/containerd", "/var/log/pods", "/var/log/containers",
		"/opt/cni", "/opt/containerd", "/etc/cni", "/etc/kubernetes", "/usr/libexec/kubernetes", "/run/openvswitch", "/run/ovn"} {
		_, err := os.Stat(dir)
		state[dir] = map[bool]string{true: "there", false: "absent"}[err == nil]
	}
	return state
}

// traces lists what is left of a cluster: processes, names, mounts, control groups, files.
func (f *fixture) traces(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, pid := range f.processes(t) {
		left = append(left, "process "+strconv.Itoa(pid))
	}
	left = append(left, f.mounts(t)...)
	for _, pattern := range []string{"/run/netns/pb-" + f.Name + "-*", "/sys/fs/cgroup/patchbay-" + f.Name, "/sys/fs/cgroup/*/patchbay-" + f.Name, f.dir(),
		filepath.Join(f.home, "."+f.Name+"*"), "/sys/fs/cgroup/*/k8s.io", "/sys/fs/cgroup/k8s.io"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// mounts are those at and below the cluster's directory and its names.
func (f *fixture) mounts(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		point := strings.Fields(line)[4]
		if strings.HasPrefix(point, f.dir()) || strings.HasPrefix(point, "/run/netns/pb-"+f.Name+"-") {
			found = append([]string{point}, found...)
		}
	}
	return found
}

// processes finds every process of the cluster in two ways that do not depend on each other: the mark in the environment and the
// pods' control groups.
func (f *fixture) processes(t *testing.T) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, dir := range dirs {
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			continue
		}
		if bytes.Contains(environment, []byte("PATCHBAY_UNIT="+f.dir()+":")) || bytes.Contains(groups, []byte(":/patchbay-"+f.Name+"/")) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, pid)
		}
	}
	return found
}

// killEverything leaves no process of the cluster, the supervisor first, as if the host had lost power.
func (f *fixture) killEverything(t *testing.T) {
	t.Helper()
	kill(t, pids(f.Status(t))["supervisor"])
	f.Eventually(t, limit, "no process is left", func() error {
		for _, pid := range f.processes(t) {
			kill(t, pid)
		}
		if len(f.processes(t)) > 0 {
			return syscall.EBUSY
		}
		return nil
	})
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
}
