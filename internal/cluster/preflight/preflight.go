// Package preflight looks whether this host can run a local cluster before anything is changed on it. Every finding is a sentence
// that says what to do.
package preflight

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	return programs(self, findProgram, isFile)
}

// programs takes the search as functions: find gives a program's path or nothing.
func programs(self string, find func(name string) string, exists func(path string) bool) (components.Programs, error) {
	bin := filepath.Dir(self)
	paths, missing := map[string]string{}, packages{}
	for name, pkg := range hostPrograms {
		if paths[name] = find(name); paths[name] == "" {
			missing.add(name, pkg)
		}
	}
	for schema, pkg := range schemaPackages {
		if !exists(schema) {
			missing.add(schema, pkg)
		}
	}
	p := components.Programs{
		Patchbay:      self,
		PatchbayKube:  filepath.Join(bin, "patchbay-kube"),
		Shim:          filepath.Join(bin, "containerd-shim-runc-v2"),
		CNI:           filepath.Join(bin, "patchbay-cni"),
		Runc:          paths["runc"],
		OVSDBServer:   paths["ovsdb-server"],
		OVSVSwitchd:   paths["ovs-vswitchd"],
		OVNNorthd:     paths["ovn-northd"],
		OVNController: paths["ovn-controller"],
	}
	var own []string
	for _, program := range []string{p.PatchbayKube, p.Shim, p.CNI, filepath.Join(bin, PauseProgram)} {
		if !exists(program) {
			own = append(own, filepath.Base(program))
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
type packages struct{ files, packages []string }

func (p *packages) add(file, pkg string) {
	p.files, p.packages = append(p.files, file), append(p.packages, pkg)
}

func (p *packages) err() error {
	if len(p.files) == 0 {
		return nil
	}
	return fmt.Errorf("this host lacks %s; install with: apt-get install --no-install-recommends %s",
		strings.Join(unique(p.files), ", "), strings.Join(unique(p.packages), " "))
}

// findProgram looks through PATH and then through the directories of system programs.
func findProgram(name string) string {
	if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) {
		return path
	}
	for _, dir := range systemDirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func unique(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
