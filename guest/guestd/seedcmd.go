package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"patchbay/guest/guestd/provision"
	"patchbay/guest/guestd/seed"
)

// What "seed" leaves for "serve", in memory: gone at the next boot.
const (
	runDir      = "/run/guestd"
	networkFile = runDir + "/network-config"
	commandFile = runDir + "/commands"
	ownNameFile = runDir + "/hostname-is-set" // the seed gave a host name; DHCP's is ignored
)

// applySeed looks for a seed disk and carries it out. A guest without one is in order.
func applySeed() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	device, fstype, kind := seed.FindDevice("/dev")
	if kind == "" {
		return nil
	}
	s, err := readDevice(device, fstype, kind)
	if err != nil {
		return fmt.Errorf("seed on %s: %w", device, err)
	}
	slog.Info("seed", "kind", s.Kind, "device", device, "instance", s.Meta.InstanceID)
	machine := provision.Machine{Root: "/", SetHostname: setHostname, Run: provision.Execute}
	commands, err := machine.Apply(s)
	list, err2 := json.Marshal(commands)
	return errors.Join(err, err2,
		os.WriteFile(networkFile, s.Network, 0o600),
		os.WriteFile(commandFile, list, 0o600))
}

func readDevice(device, fstype string, kind seed.Kind) (*seed.Seed, error) {
	dir := filepath.Join(runDir, "seed")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := syscall.Mount(device, dir, fstype, syscall.MS_RDONLY, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", fstype, err)
	}
	s, err := seed.Read(os.DirFS(dir), kind)
	return s, errors.Join(err, syscall.Unmount(dir, 0))
}

func setHostname(name string) error {
	return errors.Join(syscall.Sethostname([]byte(name)), os.WriteFile(ownNameFile, nil, 0o644))
}

// hostnameFromDHCP takes the name that a DHCP server gives unless the seed gave one.
func hostnameFromDHCP(name string) {
	if _, err := os.Stat(ownNameFile); err == nil {
		return
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		slog.Warn("host name from DHCP", "name", name, "error", err)
	}
}

// networkWait is how long the seed's commands wait for an address; a guest may have no network at all.
const networkWait = 20 * time.Second

// runCommands runs the seed's commands in order, each whatever became of the one before, once there is a network. The list
// is taken away first: a restart of this process must not run them again.
func runCommands(ctx context.Context, online <-chan struct{}) error {
	data, err := os.ReadFile(commandFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := errors.Join(err, os.Remove(commandFile)); err != nil {
		return err
	}
	var commands []seed.Command
	if err := json.Unmarshal(data, &commands); err != nil {
		return err
	}
	if len(commands) == 0 {
		return nil
	}
	select {
	case <-online:
	case <-time.After(networkWait):
	case <-ctx.Done():
	}
	var errs []error
	for _, c := range commands {
		errs = append(errs, provision.Execute(c))
	}
	return errors.Join(errs...)
}
