// Package provision carries out a seed in the guest: host name, users, keys, files and commands. What belongs to an
// instance is done once per instance id, the rest at every boot, as cloud-init does it. Networks are package nic's.
package provision

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"patchbay/guest/guestd/seed"
)

// DefaultUser is who a seed means when it names nobody.
const DefaultUser = "patchbay"

// Machine is the guest to change. Root is "/" but in tests.
type Machine struct {
	Root        string
	SetHostname func(name string) error
	Run         func(argv []string) error
}

// Apply carries out everything but the commands. It returns the instance's commands, which may need the network; nil when they
// have run before. It goes on after a failure and returns all of them.
func (m Machine) Apply(s *seed.Seed) ([]seed.Command, error) {
	config, err := seed.ParseUserData(s.UserData)
	errs := []error{err}
	if name := hostname(config, s.Meta); name != "" {
		errs = append(errs, m.hostname(name))
	}
	for _, c := range config.BootCommands {
		errs = append(errs, m.Run(c))
	}
	if m.known(s.Meta.InstanceID) {
		return nil, errors.Join(errs...)
	}
	errs = append(errs, m.users(config, s.Meta.Keys))
	for _, f := range config.WriteFiles {
		errs = append(errs, m.writeFile(f))
	}
	errs = append(errs, m.remember(s.Meta.InstanceID))
	return config.Commands, errors.Join(errs...)
}

func hostname(config seed.CloudConfig, meta seed.Meta) string {
	for _, name := range []string{string(config.Hostname), string(config.FQDN), meta.Hostname} {
		if short, _, _ := strings.Cut(name, "."); short != "" {
			return short
		}
	}
	return ""
}

// hostname also tells DHCP's answer to keep off: the seed's word goes first.
func (m Machine) hostname(name string) error {
	return errors.Join(
		m.SetHostname(name),
		os.WriteFile(filepath.Join(m.Root, "/etc/hostname"), []byte(name+"\n"), 0o644),
		os.WriteFile(filepath.Join(m.Root, "/etc/hosts"), fmt.Appendf(nil, "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n", name), 0o644),
	)
}

// stateFile remembers the instance that this disk was last provisioned for.
const stateFile = "/var/lib/guestd/instance-id"

func (m Machine) known(id string) bool {
	data, err := os.ReadFile(filepath.Join(m.Root, stateFile))
	return err == nil && id != "" && string(data) == id
}

func (m Machine) remember(id string) error {
	path := filepath.Join(m.Root, stateFile)
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(id), 0o644))
}

func (m Machine) users(config seed.CloudConfig, metaKeys []string) error {
	a := accounts{m.Root}
	name := string(config.User)
	if name == "" {
		name = DefaultUser
	}
	user, err := a.ensure(name)
	if err != nil {
		return err
	}
	errs := []error{a.authorize(user, append(metaKeys, config.Keys...))}
	if config.Password != "" {
		errs = append(errs, a.password(name, string(config.Password)))
	}
	for _, u := range config.Users {
		errs = append(errs, a.add(u))
	}
	passwords, err := config.Chpasswd.Passwords()
	errs = append(errs, err)
	for _, p := range passwords {
		errs = append(errs, a.password(p[0], p[1]))
	}
	return errors.Join(errs...)
}

func (a accounts) add(u seed.User) error {
	user, err := a.ensure(string(u.Name))
	if err != nil {
		return err
	}
	if u.Password != "" {
		err = a.password(user.name, string(u.Password))
	}
	return errors.Join(err, a.authorize(user, u.Keys))
}

func (m Machine) writeFile(f seed.File) error {
	data, err := f.Data()
	if err != nil {
		return err
	}
	mode, err := permissions(string(f.Permissions))
	if err != nil {
		return fmt.Errorf("write_files %s: %w", f.Path, err)
	}
	path := filepath.Join(m.Root, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if f.Append {
		flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
	}
	out, err := os.OpenFile(path, flags, mode)
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return errors.Join(err, out.Chmod(mode), out.Close(), m.chown(path, f.Owner))
}

func (m Machine) chown(path, owner string) error {
	name, _, _ := strings.Cut(owner, ":")
	if name == "" || name == "root" {
		return nil
	}
	user, ok, err := accounts{m.Root}.find(name)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("write_files %s: there is no user %s", path, name))
	}
	return os.Chown(path, user.uid, user.gid)
}

func permissions(s string) (fs.FileMode, error) {
	if s == "" {
		return 0o644, nil
	}
	n, err := strconv.ParseUint(s, 8, 12)
	return fs.FileMode(n), err
}

// Execute runs a command with its output on the console.
func Execute(argv []string) error {
	if len(argv) == 0 {
		return nil
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("command %q: %w", argv, err)
	}
	return nil
}
