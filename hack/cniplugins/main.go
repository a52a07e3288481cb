// Command cniplugins builds the CNI plugins that delegated networks use into one program. Each is published as a program of its own, and
// eleven of them would be 45 MB; programs cannot be imported, so their sources are taken from the module cache, made into packages in a
// temporary tree below build/, and linked with a main that calls the one that the program was started as. Nothing of it is kept in the
// repository: the versions and sums of go.mod and go.sum say what is built.
//
//	go run ./hack/cniplugins bin/patchbay-cni-plugins
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

const plugins = "github.com/containernetworking/plugins/plugins/"

// programs are the plugins by name: the import paths of their main packages.
var programs = map[string]string{
	"bridge":      plugins + "main/bridge",
	"dhcp":        plugins + "ipam/dhcp",
	"host-device": plugins + "main/host-device",
	"host-local":  plugins + "ipam/host-local",
	"loopback":    plugins + "main/loopback",
	"macvlan":     plugins + "main/macvlan",
	"ptp":         plugins + "main/ptp",
	"static":      plugins + "ipam/static",
	"tuning":      plugins + "meta/tuning",
	"vlan":        plugins + "main/vlan",
}

// tree holds the generated packages. The go command does not find it by patterns, because its name begins with an underscore.
const tree = "build/_cniplugins"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cniplugins:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: go run ./hack/cniplugins FILE")
	}
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	for name, path := range programs {
		if err := convert(name, path); err != nil {
			return fmt.Errorf("plugin %s: %w", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "main.go"), dispatcher(), 0o644); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", args[0], "./"+tree)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// identifier is a package name for a plugin.
func identifier(name string) string { return strings.ReplaceAll(name, "-", "") }

var (
	packageClause = regexp.MustCompile(`(?m)^package main$`)
	mainFunc      = regexp.MustCompile(`(?m)^func main\(\)`)
)

// convert makes a package with an exported Main out of a program.
func convert(name, path string) error {
	out, err := exec.Command("go", "list", "-json=Dir,GoFiles", path).Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	var source struct {
		Dir     string
		GoFiles []string
	}
	if err := json.Unmarshal(out, &source); err != nil {
		return err
	}
	dir := filepath.Join(tree, identifier(name))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, file := range source.GoFiles {
		text, err := os.ReadFile(filepath.Join(source.Dir, file))
		if err != nil {
			return err
		}
		text = packageClause.ReplaceAll(text, []byte("package "+identifier(name)))
		text = mainFunc.ReplaceAll(text, []byte("func Main()"))
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// dispatcher is the program's own source. It may be called by a link with the plugin's name, or with the name as first argument.
func dispatcher() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n\t\"path/filepath\"\n\n")
	for name := range programs {
		fmt.Fprintf(&b, "\t%q\n", "patchbay/"+tree+"/"+identifier(name))
	}
	fmt.Fprintf(&b, ")\n\nvar plugins = map[string]func(){\n")
	for name := range programs {
		fmt.Fprintf(&b, "\t%q: %s.Main,\n", name, identifier(name))
	}
	b.WriteString(`}

func main() {
	name := filepath.Base(os.Args[0])
	if plugins[name] == nil && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	if plugin := plugins[name]; plugin != nil {
		plugin()
		return
	}
	if name == "list" {
		for name := range plugins {
			fmt.Println(name)
		}
		return
	}
	fmt.Fprintln(os.Stderr, "usage: patchbay-cni-plugins PLUGIN [ARGUMENT...], or a link with a plugin's name; \"patchbay-cni-plugins list\" names them")
	os.Exit(2)
}
`)
	return b.Bytes()
}
