// Package credentials lets people into guests: it reads the secrets that an instance names as access credentials, where the
// kubelet keeps them for the instance's pod, and has the guest agent make them true. What it reads must reach nobody but the guest:
// it logs nothing, and its errors name users and secrets, never what is in them.
package credentials

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"
)

// Dir is where the files of a secret lie on the node.
type Dir func(secret string) string

// Wanted is how users of a guest get in.
type Wanted struct {
	// Keys are the SSH keys that a user accepts: these and no others. A user without keys accepts none.
	Keys map[string][]string
	// Passwords are by user.
	Passwords map[string]string
}

// ForAgent reads what the guest agent is to make true. A user's keys are those of all secrets that name the user.
func ForAgent(list []virtv1.AccessCredential, dir Dir) (Wanted, error) {
	w := Wanted{Keys: map[string][]string{}, Passwords: map[string]string{}}
	for _, c := range list {
		if !byAgent(c) {
			continue
		}
		values, err := read(dir, secretOf(c))
		if err != nil {
			return Wanted{}, err
		}
		if c.UserPassword != nil {
			for user, password := range values {
				w.Passwords[user] = strings.TrimRight(password, "\r\n")
			}
			continue
		}
		for _, user := range c.SSHPublicKey.PropagationMethod.QemuGuestAgent.Users {
			w.Keys[user] = addNew(w.Keys[user], keysOf(values))
		}
	}
	return w, nil
}

// ForSeed reads the SSH keys that travel in cloud-init's meta-data, at boot.
func ForSeed(list []virtv1.AccessCredential, dir Dir) ([]string, error) {
	var keys []string
	for _, c := range list {
		ssh := c.SSHPublicKey
		if ssh == nil || ssh.PropagationMethod.NoCloud == nil && ssh.PropagationMethod.ConfigDrive == nil {
			continue
		}
		values, err := read(dir, secretOf(c))
		if err != nil {
			return nil, err
		}
		keys = addNew(keys, keysOf(values))
	}
	return keys, nil
}

// NeedAgent says whether the guest agent has anything to do.
func NeedAgent(list []virtv1.AccessCredential) bool { return slices.ContainsFunc(list, byAgent) }

func byAgent(c virtv1.AccessCredential) bool {
	return c.SSHPublicKey != nil && c.SSHPublicKey.PropagationMethod.QemuGuestAgent != nil ||
		c.UserPassword != nil && c.UserPassword.PropagationMethod.QemuGuestAgent != nil
}

func secretOf(c virtv1.AccessCredential) string {
	switch {
	case c.SSHPublicKey != nil && c.SSHPublicKey.Source.Secret != nil:
		return c.SSHPublicKey.Source.Secret.SecretName
	case c.UserPassword != nil && c.UserPassword.Source.Secret != nil:
		return c.UserPassword.Source.Secret.SecretName
	}
	return ""
}

// keysOf splits values, in the order of their names, into keys: a value may hold several, a line each.
func keysOf(values map[string]string) []string {
	var keys []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		for line := range strings.Lines(values[name]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				keys = append(keys, line)
			}
		}
	}
	return keys
}

// addNew keeps the order and leaves out what is there.
func addNew(list, more []string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// read returns a secret's values by name. The kubelet's own files in the directory begin with two dots.
func read(dir Dir, secret string) (map[string]string, error) {
	root := dir(secret)
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("secret %q is not in the virtual machine's pod, which takes those that were named at its start; restart the virtual machine", secret)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %q: %w", secret, err)
	}
	values := map[string]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(root, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // taken out of the secret since
		}
		if err != nil {
			return nil, fmt.Errorf("read secret %q: %w", secret, err)
		}
		values[e.Name()] = string(data)
	}
	return values, nil
}
