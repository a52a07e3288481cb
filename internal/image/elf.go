package image

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Closure returns the given programs and libraries with everything that the dynamic loader needs to start them: the
// loader itself, the libraries named by DT_NEEDED, theirs, and every symbolic link on the way. root is the directory
// whose libraries are meant ("/" for this host); names are paths inside it, as are the results. Directories and files that are not
// ELF are returned as they are.
//
// Libraries opened by name at run time (dlopen) are not visible in a file; the caller names them too.
func Closure(root string, names ...string) ([]string, error) {
	dirs, err := libraryDirs(root)
	if err != nil {
		return nil, err
	}
	c := &closure{root: root, dirs: dirs, seen: map[string]bool{}}
	for _, name := range names {
		if err := c.visit(name); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(func(yield func(string) bool) {
		for p := range c.seen {
			if !yield(p) {
				return
			}
		}
	}), nil
}

type closure struct {
	root string
	dirs []string // where the loader looks, in order
	seen map[string]bool
}

// visit adds a file, the links that lead to it and what it needs.
func (c *closure) visit(name string) error {
	real, err := c.follow(name)
	if err != nil || c.seen[real] {
		return err
	}
	c.seen[real] = true
	if info, err := os.Stat(filepath.Join(c.root, real)); err != nil || info.IsDir() {
		return err
	}
	file, err := elf.Open(filepath.Join(c.root, real))
	var notELF *elf.FormatError
	if errors.As(err, &notELF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", real, err)
	}
	defer file.Close()
	needed, err := c.needed(file, real)
	if err != nil {
		return err
	}
	for _, n := range needed {
		if err := c.visit(n); err != nil {
			return err
		}
	}
	return nil
}

// follow resolves symbolic links inside the root, noting each that it crosses, and returns the file at the end.
func (c *closure) follow(name string) (string, error) {
	done, rest := "/", strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	for hops := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(filepath.Join(c.root, next))
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if hops++; hops > 40 {
			return "", fmt.Errorf("%s: too many symbolic links", name)
		}
		target, err := os.Readlink(filepath.Join(c.root, next))
		if err != nil {
			return "", err
		}
		c.seen[next] = true
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		done, rest = "/", append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
	}
	return done, nil
}

// needed lists what one ELF file asks for: its loader and its libraries, as paths inside the root.
func (c *closure) needed(file *elf.File, name string) ([]string, error) {
	var found []string
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			return nil, fmt.Errorf("read the loader's name in %s: %w", name, err)
		}
		found = append(found, strings.TrimRight(string(data), "\x00"))
	}
	libraries, err := file.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read what %s needs: %w", name, err)
	}
	dirs := append(runPath(file, path.Dir(name)), c.dirs...)
	for _, library := range libraries {
		p, ok := c.search(library, dirs)
		if !ok {
			return nil, fmt.Errorf("%s needs %s, which is in none of the library directories; install the package that holds it", name, library)
		}
		found = append(found, p)
	}
	return found, nil
}

func (c *closure) search(library string, dirs []string) (string, bool) {
	for _, d := range dirs {
		p := path.Join(d, library)
		if _, err := os.Stat(filepath.Join(c.root, p)); err == nil {
			return p, true
		}
		if _, err := os.Lstat(filepath.Join(c.root, p)); err == nil { // an absolute link that points inside the root
			return p, true
		}
	}
	return "", false
}

// runPath is the search path that a file brings along, with $ORIGIN put in.
func runPath(file *elf.File, origin string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, err := file.DynString(tag)
		if err != nil {
			continue // no dynamic section
		}
		for _, v := range values {
			for d := range strings.SplitSeq(v, ":") {
				d = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d)
				dirs = append(dirs, path.Clean(d))
			}
		}
	}
	return dirs
}

// libraryDirs is the loader's own search path: /etc/ld.so.conf with its includes, then the built-in directories.
func libraryDirs(root string) ([]string, error) {
	dirs, err := loaderConf(root, "/etc/ld.so.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return append(dirs, "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"), nil
}

func loaderConf(root, name string) ([]string, error) {
	file, err := os.Open(filepath.Join(root, name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var dirs []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		switch words := strings.Fields(line); {
		case len(words) == 2 && words[0] == "include":
			more, err := includedConf(root, words[1])
			if err != nil {
				return nil, err
			}
			dirs = append(dirs, more...)
		case len(words) == 1:
			dirs = append(dirs, words[0])
		}
	}
	return dirs, nil
}

func includedConf(root, pattern string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, f := range files {
		more, err := loaderConf(root, strings.TrimPrefix(f, strings.TrimSuffix(root, "/")))
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, more...)
	}
	return dirs, nil
}
