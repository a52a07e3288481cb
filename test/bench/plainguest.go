package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"patchbay/internal/guestshell"
	"patchbay/internal/qemu/qmp"
)

// plainGuest is the guest of the tiny image in a QEMU that nothing of ours started.
type plainGuest struct {
	dir     string
	process *exec.Cmd
	monitor qmp.Machine
}

// likeOurs are the options in which a plain guest must be like ours, so that only what is measured differs: how guest code is executed and
// what the network card leaves to the switch.
type likeOurs struct {
	accel, cpu string
	memory     string // an emulated guest's is odd, without which QEMU 7.2 loses changes to it in a migration
	card       string // options of the device, each with a comma before it
}

// optionsOf reads them from the QEMU of one of our guests.
func optionsOf(guestName string) (likeOurs, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return likeOurs{}, err
	}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte("guest="+guestName+",")) && bytes.Contains(line, []byte("qemu-system")) {
			return pickOptions(strings.Split(string(line), "\x00")), nil
		}
	}
	return likeOurs{}, fmt.Errorf("no QEMU process runs guest %s", guestName)
}

func pickOptions(args []string) likeOurs {
	var o likeOurs
	for n, arg := range args[:max(0, len(args)-1)] {
		switch value := args[n+1]; {
		case arg == "-accel":
			o.accel = value
		case arg == "-cpu":
			o.cpu = value
		case arg == "-m":
			o.memory = value
		case arg == "-device" && strings.HasPrefix(value, "virtio-net-pci,"):
			o.card = cardOptions(value)
		}
	}
	return o
}

// cardOptions leaves out what is the card's own.
func cardOptions(device string) string {
	var kept string
	for _, option := range strings.Split(device, ",")[1:] {
		switch name, _, _ := strings.Cut(option, "="); name {
		case "netdev", "id", "mac", "bus", "addr":
		default:
			kept += "," + option
		}
	}
	return kept
}

// plainGuestConfig is what a plain guest is started with.
type plainGuestConfig struct {
	dir, node, tap, mac string
	disk                string // qcow2
	incoming            bool
	like                likeOurs
}

// startGuest starts QEMU on a node and connects to its monitor.
func (b *bench) startGuest(ctx context.Context, c plainGuestConfig) (*plainGuest, error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	args := []string{"--net=/run/netns/" + b.nodeNamespace(c.node), "qemu-system-x86_64", "-M", "q35", "-accel", c.like.accel, "-cpu", c.like.cpu,
		"-m", c.like.memory, "-display", "none", "-nodefaults", "-vga", "std",
		"-qmp", "unix:" + filepath.Join(c.dir, "qmp") + ",server=on,wait=off", "-serial", "unix:" + filepath.Join(c.dir, "serial") + ",server=on,wait=off",
		"-blockdev", "driver=qcow2,node-name=disk0,cache.no-flush=on,file.driver=file,file.filename=" + c.disk,
		"-device", "virtio-blk-pci,drive=disk0", "-netdev", "tap,id=n,ifname=" + c.tap + ",script=no,downscript=no,vhost=off",
		"-device", "virtio-net-pci,netdev=n,mac=" + c.mac + c.like.card}
	if c.incoming {
		args = append(args, "-incoming", "defer", "-S")
	}
	g := &plainGuest{dir: c.dir, process: exec.CommandContext(ctx, "nsenter", args...)}
	g.process.Stderr = os.Stderr
	if err := g.process.Start(); err != nil {
		return nil, err
	}
	err := b.until(ctx, 20*time.Second, func() error {
		client, err := qmp.Dial(ctx, filepath.Join(c.dir, "qmp"))
		g.monitor = qmp.Machine{Monitor: client}
		return err
	})
	if err != nil {
		stop(g.process)
		return nil, err
	}
	return g, nil
}

func (g *plainGuest) stop() {
	_ = g.monitor.Close()
	stop(g.process)
}

// shell opens the guest's console and logs in.
func (g *plainGuest) shell(ctx context.Context) (*guestshell.Shell, error) {
	console, err := net.Dial("unix", filepath.Join(g.dir, "serial"))
	if err != nil {
		return nil, err
	}
	shell := guestshell.New(console, guestshell.Login{User: "root", Password: "patchbay"})
	bounded, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return shell, shell.Ready(bounded)
}

// overlay makes a disk over the tiny image.
func (b *bench) overlay(ctx context.Context, path string) error {
	_, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(b.cluster.Root(), "build/guests/tiny.qcow2"), path)
	return err
}
