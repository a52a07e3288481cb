package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"patchbay/internal/image"
)

// kernel is a Debian kernel among unpacked packages.
type kernel struct {
	root    string            // of the unpacked packages
	version string            // 6.1.0-…-cloud-amd64
	files   map[string]string // module name -> file; empty for one that is built in
}

func findKernel(root string) (*kernel, error) {
	found, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("want one kernel in %s/boot, found %d", root, len(found))
	}
	k := &kernel{root: root, version: strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-"), files: map[string]string{}}
	dir := filepath.Join(root, "lib/modules", k.version)
	builtin, err := list(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, p := range builtin {
		k.files[moduleName(p)] = ""
	}
	return k, filepath.Walk(filepath.Join(dir, "kernel"), func(p string, _ os.FileInfo, err error) error {
		if strings.HasSuffix(p, ".ko") {
			k.files[moduleName(p)] = p
		}
		return err
	})
}

func (k *kernel) image() string { return filepath.Join(k.root, "boot/vmlinuz-"+k.version) }

// moduleName is the name as the kernel writes it: no hyphens.
func moduleName(p string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(p), ".ko"), "-", "_")
}

// addModules puts modules, and those that they need, into a tree with the indexes that modprobe reads.
func (k *kernel) addModules(tree *image.Tree, names []string) error {
	needs := map[string][]string{}
	infos := map[string][]string{}
	for todo := slices.Clone(names); len(todo) > 0; todo = todo[1:] {
		name := strings.ReplaceAll(todo[0], "-", "_")
		if _, ok := needs[name]; ok {
			continue
		}
		file, ok := k.files[name]
		if !ok {
			return fmt.Errorf("kernel %s has no module %s", k.version, todo[0])
		}
		if file == "" {
			continue
		}
		data, info, err := readModule(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		tree.Bytes(k.modulePath(name), 0o644, data)
		infos[name], needs[name] = info, modinfo(info, "depends")
		todo = append(todo, needs[name]...)
	}
	k.addIndexes(tree, needs, infos)
	return nil
}

func (k *kernel) modulePath(name string) string {
	return path.Join("/lib/modules", k.version, name+".ko")
}

// addIndexes writes modules.dep, which names all that a module needs, farthest last, and modules.alias.
func (k *kernel) addIndexes(tree *image.Tree, needs, infos map[string][]string) {
	var dep, alias bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(needs)) {
		fmt.Fprintf(&dep, "%s.ko:", name)
		for _, n := range allNeeds(needs, name) {
			fmt.Fprintf(&dep, " %s.ko", n)
		}
		dep.WriteString("\n")
		for _, a := range modinfo(infos[name], "alias") {
			fmt.Fprintf(&alias, "alias %s %s\n", a, name)
		}
	}
	dir := path.Join("/lib/modules", k.version)
	tree.Bytes(dir+"/modules.dep", 0o644, dep.Bytes())
	tree.Bytes(dir+"/modules.alias", 0o644, alias.Bytes())
}

// allNeeds lists direct and indirect needs so that each stands before what it needs itself: modprobe loads from the end.
func allNeeds(needs map[string][]string, name string) []string {
	var order []string
	var visit func(string)
	visit = func(n string) {
		for _, d := range needs[n] {
			if !slices.Contains(order, d) {
				visit(d)
				order = append(order, d)
			}
		}
	}
	visit(name)
	slices.Reverse(order)
	return order
}

// readModule returns a module without its signature, and its .modinfo. Checking a signature costs the emulated guest more
// than running the module, and no kernel here insists on one.
func readModule(file string) ([]byte, []string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	module, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	section := module.Section(".modinfo")
	if section == nil {
		return nil, nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, err
	}
	return withoutSignature(data), strings.Split(string(info), "\x00"), nil
}

// withoutSignature cuts what the kernel's build appended: the signature, 12 bytes that end in its length, and a magic line.
func withoutSignature(data []byte) []byte {
	const magic = "~Module signature appended~\n"
	if !bytes.HasSuffix(data, []byte(magic)) {
		return data
	}
	end := len(data) - len(magic)
	length := int(binary.BigEndian.Uint32(data[end-4 : end]))
	return data[:end-12-length]
}

// modinfo returns the values of one key; depends is a list with commas.
func modinfo(info []string, key string) []string {
	var out []string
	for _, line := range info {
		value, ok := strings.CutPrefix(line, key+"=")
		if !ok || value == "" {
			continue
		}
		if key == "depends" {
			value = strings.ReplaceAll(value, "-", "_")
			return strings.Split(value, ",")
		}
		out = append(out, value)
	}
	return out
}
