package vmctl

import (
	"errors"
	"fmt"
	"strings"
)

// File is a file of this host or, with a machine, of a guest.
type File struct {
	User    string
	Machine Name
	Path    string
}

// Remote says that it is a guest's.
func (f File) Remote() bool { return f.Machine != Name{} }

// Or returns the one of two that is a guest's.
func (f File) Or(other File) File {
	if f.Remote() {
		return f
	}
	return other
}

// ParseCopy reads what is to be copied where: exactly one of them is a guest's.
func ParseCopy(source, destination, namespace string) (from, to File, err error) {
	if from, err = parseFile(source, namespace); err != nil {
		return from, to, err
	}
	if to, err = parseFile(destination, namespace); err != nil {
		return from, to, err
	}
	switch {
	case from.Remote() && to.Remote():
		return from, to, errors.New("both files are of virtual machines; copy from one to this host first")
	case !from.Remote() && !to.Remote():
		return from, to, fmt.Errorf("neither %q nor %q is a file of a virtual machine; write [USER@]MACHINE:FILE", source, destination)
	}
	return from, to, nil
}

// parseFile reads [USER@]MACHINE:FILE. A path of this host may hold a colon after a slash.
func parseFile(text, namespace string) (File, error) {
	machine, path, remote := strings.Cut(text, ":")
	if !remote || strings.HasPrefix(text, "/") || strings.HasPrefix(text, ".") {
		return File{Path: text}, nil
	}
	user, name, err := ParseLogin(machine, namespace)
	return File{User: user, Machine: name, Path: path}, err
}
