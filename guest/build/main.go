// Command build makes the images that a Patchbay cluster brings along: the launcher of virtual machines' pods, the guests
// and a toolbox for pods. It runs from the repository's root, as root (it gives files to other owners), and makes an image again only when one of its inputs changed.
//
//	go run ./guest/build [-out DIR] [tiny|tiny-kernel|toolbox|launcher|debian ...]
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"patchbay/internal/image"
)

func main() {
	log.SetFlags(0)
	out := flag.String("out", "build", "directory for everything that is made; images appear in its images directory")
	flag.Parse()
	b := builder{out: *out}
	targets := flag.Args()
	if len(targets) == 0 {
		targets = allTargets
	}
	for _, t := range targets {
		if err := b.make(t); err != nil {
			log.Fatalf("build %s: %v", t, err)
		}
	}
}

// allTargets in the order of how soon somebody needs them.
var allTargets = []string{"launcher", "tiny", "tiny-kernel", "toolbox", "debian"}

type builder struct{ out string }

func (b builder) make(target string) error {
	makers := map[string]func(work string) error{
		"tiny":        b.tiny,
		"tiny-kernel": b.tinyKernel,
		"toolbox":     b.toolbox,
		"launcher":    b.launcher,
		"debian":      b.debian,
	}
	maker := makers[target]
	if maker == nil {
		return fmt.Errorf("there is no such image; have %s", strings.Join(allTargets, ", "))
	}
	inputs, err := b.inputs(target)
	if err != nil {
		return err
	}
	if b.fresh(target, inputs) {
		return nil
	}
	start := time.Now()
	log.Printf("%-12s building", target)
	work, err := b.workDir(target)
	if err != nil {
		return err
	}
	if err := maker(work); err != nil {
		return err
	}
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	log.Printf("%-12s built in %.1f s, %s", target, time.Since(start).Seconds(), size(b.archive(target)))
	return b.finish(target, inputs)
}

// workDir is an empty directory for one target; what an interrupted build left there goes away.
func (b builder) workDir(target string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(b.out, "work", target))
	if err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

func (b builder) archive(target string) string {
	return filepath.Join(b.out, "images", target+".tar")
}

// save writes an image of one layer as the target's archive.
func (b builder) save(target, name string, config image.Config, tree *image.Tree) error {
	if err := os.MkdirAll(filepath.Dir(b.archive(target)), 0o755); err != nil {
		return err
	}
	img, err := image.Assemble(config, tree)
	if err != nil {
		return err
	}
	return image.WriteArchive(b.archive(target), image.Named{Name: name, Image: img}, nil)
}

func size(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.0f MB", float64(info.Size())/1e6)
}

// run starts a tool and returns its output; on failure the error holds what it said.
func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", image.Epoch.Unix()), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"), "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// list reads a file of one entry a line, with comments.
func list(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := slices.Collect(strings.Lines(string(data)))
	var out []string
	for _, l := range lines {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			out = append(out, l)
		}
	}
	return out, nil
}

// create makes a file from what write writes.
func create(path string, write func(w io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return f.Close()
}
