package provision

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// accounts edits the files below root/etc that describe users. The guest has no shadow-utils.
type accounts struct{ root string }

// account is one line of passwd.
type account struct {
	name     string
	uid, gid int
	home     string
}

func (a accounts) path(p string) string { return filepath.Join(a.root, p) }

func (a accounts) find(name string) (account, bool, error) {
	lines, err := readLines(a.path("/etc/passwd"))
	if err != nil {
		return account{}, false, err
	}
	for _, l := range lines {
		f := strings.Split(l, ":")
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err := errors.Join(err1, err2); err != nil {
			return account{}, false, fmt.Errorf("passwd entry of %s: %w", name, err)
		}
		return account{name: name, uid: uid, gid: gid, home: f[5]}, true, nil
	}
	return account{}, false, nil
}

// ensure returns a user's account, which it makes when there is none.
func (a accounts) ensure(name string) (account, error) {
	if name == "" || strings.ContainsAny(name, ":/\n ") {
		return account{}, fmt.Errorf("%q cannot be a user's name", name)
	}
	found, ok, err := a.find(name)
	if err != nil || ok {
		return found, err
	}
	uid, err := a.freeUID()
	if err != nil {
		return account{}, err
	}
	user := account{name: name, uid: uid, gid: uid, home: "/home/" + name}
	return user, errors.Join(
		appendLine(a.path("/etc/passwd"), fmt.Sprintf("%s:x:%d:%d::%s:/bin/bash", name, uid, uid, user.home)),
		appendLine(a.path("/etc/group"), fmt.Sprintf("%s:x:%d:", name, uid)),
		appendLine(a.path("/etc/shadow"), name+":!:19700:0:99999:7:::"),
		a.makeHome(user),
	)
}

func (a accounts) makeHome(user account) error {
	home := a.path(user.home)
	return errors.Join(os.MkdirAll(home, 0o755), os.Chown(home, user.uid, user.gid))
}

func (a accounts) freeUID() (int, error) {
	lines, err := readLines(a.path("/etc/passwd"))
	if err != nil {
		return 0, err
	}
	uid := 1000
	for _, l := range lines {
		if f := strings.Split(l, ":"); len(f) > 2 {
			if n, err := strconv.Atoi(f[2]); err == nil && n >= uid && n < 60000 {
				uid = n + 1
			}
		}
	}
	return uid, nil
}

// password sets a user's password, plain or hashed ("$6$…").
func (a accounts) password(name, password string) error {
	hash := password
	if !strings.HasPrefix(password, "$") {
		var err error
		if hash, err = crypt(password); err != nil {
			return fmt.Errorf("password of %s: %w", name, err)
		}
	}
	lines, err := readLines(a.path("/etc/shadow"))
	if err != nil {
		return err
	}
	for i, l := range lines {
		if f := strings.Split(l, ":"); f[0] == name && len(f) > 1 {
			f[1] = hash
			lines[i] = strings.Join(f, ":")
			return writeLines(a.path("/etc/shadow"), lines, 0o600)
		}
	}
	return fmt.Errorf("password of %s: there is no such user", name)
}

// crypt hashes a password with the tool at hand; it goes through standard input, not the command line that others can read.
func crypt(password string) (string, error) {
	cmd := exec.Command("/bin/busybox", "mkpasswd", "-m", "sha512", "-P", "0")
	cmd.Stdin = strings.NewReader(password + "\n")
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// authorize lets SSH keys in as a user, besides those that are there.
func (a accounts) authorize(user account, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	dir := a.path(filepath.Join(user.home, ".ssh"))
	file := filepath.Join(dir, "authorized_keys")
	lines, err := readLines(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, k := range keys {
		if k = strings.TrimSpace(k); k != "" && !slices.Contains(lines, k) {
			lines = append(lines, k)
		}
	}
	return errors.Join(
		os.MkdirAll(dir, 0o700), os.Chown(dir, user.uid, user.gid),
		writeLines(file, lines, 0o600), os.Chown(file, user.uid, user.gid),
	)
}

func readLines(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}

func writeLines(path string, lines []string, mode os.FileMode) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, []byte(strings.Join(lines, "\n")+"\n"), mode); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// SetPassword gives a user a password, plain or hashed.
func (m Machine) SetPassword(user, password string) error {
	return accounts{m.Root}.password(user, password)
}
