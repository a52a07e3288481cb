// Package preflight looks whether this host can run a local cluster before anything is changed on it. Every finding is a sentence
// that says what to do.
package preflight

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"patchbay/internal/cluster/components"
	"patchbay/internal/cluster/openvswitch"
)

// PauseProgram is the program of the sandbox image, beside the patchbay program.
const PauseProgram = "patchbay-pause"

// hostPrograms are programs that packages of the host bring, with the package's name in Debian.
var hostPrograms = map[string]string{
	"ovsdb-server":   "openvswitch-switch",
	"ovs-vswitchd":   "openvswitch-switch",
	"ovs-vsctl":      "openvswitch-switch",
	"ovsdb-tool":     "openvswitch-switch",
	"ovn-northd":     "ovn-central",
	"ovn-controller": "ovn-host",
	"runc":           "runc",
	"nft":            "nftables",
	"mount":          "mount",
}

var schemaPackages = map[string]string{
	openvswitch.VSwitchSchema: "openvswitch-switch",
	openvswitch.NBSchema:      "ovn-central",
	openvswitch.SBSchema:      "ovn-central",
}

// systemDirs are searched besides PATH: an ordinary user's PATH lacks the directories of system programs.
var systemDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Programs finds everything that is run.
func Programs() (components.Programs, error) {
	self, err := os.Executable()
	if err != nil {
		return components.Programs{}, fmt.Errorf("cannot tell where the patchbay program lies: %w", err)
	}
	bin := filepath.Dir(self)
	var missing packages
	find := func(name string) string { return missing.find(name) }
	p := components.Programs{
		Patchbay:      self,
		PatchbayKube:  filepath.Join(bin, "patchbay-kube"),
		Shim:          filepath.Join(bin, "containerd-shim-runc-v2"),
		CNI:           filepath.Join(bin, "patchbay-cni"),
		Runc:          find("runc"),
		OVSDBServer:   find("ovsdb-server"),
		OVSVSwitchd:   find("ovs-vswitchd"),
		OVNNorthd:     find("ovn-northd"),
		OVNController: find("ovn-controller"),
	}
	var own []string
	for _, program := range []string{p.PatchbayKube, p.Shim, filepath.Join(bin, PauseProgram)} {
		if !isExecutable(program) {
			own = append(own, filepath.Base(program))
		}
	}
	for name := range hostPrograms {
		missing.find(name)
	}
	for schema, pkg := range schemaPackages {
		if _, err := os.Stat(schema); err != nil {
			missing.add(schema, pkg)
		}
	}
	return p, errors.Join(missing.err(), ownMissing(own, bin))
}

func ownMissing(names []string, bin string) error {
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s must lie beside the patchbay program in %s; build with `make`, or unpack the download again", strings.Join(names, " and "), bin)
}

// packages collects what is missing.
type packages struct{ files, packages map[string]bool }

func (p *packages) add(file, pkg string) {
	if p.files == nil {
		p.files, p.packages = map[string]bool{}, map[string]bool{}
	}
	p.files[file], p.packages[pkg] = true, true
}

func (p *packages) find(name string) string {
	if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) {
		return path
	}
	for _, dir := range systemDirs {
		if path := filepath.Join(dir, name); isExecutable(path) {
			return path
		}
	}
	p.add(name, hostPrograms[name])
	return ""
}

func (p *packages) err() error {
	if len(p.files) == 0 {
		return nil
	}
	return fmt.Errorf("this host lacks %s; install with: apt-get install --no-install-recommends %s",
		strings.Join(sorted(p.files), ", "), strings.Join(sorted(p.packages), " "))
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func sorted(set map[string]bool) []string {
	list := make([]string, 0, len(set))
	for name := range set {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}
