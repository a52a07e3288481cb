package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// sample is a tree with every kind of entry, built from a directory whose times and order differ at each call.
func sample(t *testing.T) *Tree {
	t.Helper()
	dir := t.TempDir()
	for _, f := range []string{"b/two", "a/one", "a-b"} {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("content of "+f), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("two", filepath.Join(dir, "b/link")); err != nil {
		t.Fatal(err)
	}
	tree := NewTree()
	tree.HostDir("/", dir)
	tree.Bytes("/etc/deep/er/file", 0o600, []byte("made"))
	tree.Dir("/tmp", 0o777|os.ModeSticky, 0, 0)
	tree.Chown("/b", 107, 107)
	return tree
}

func TestTarHoldsTheTree(t *testing.T) {
	var out bytes.Buffer
	if err := sample(t).WriteTar(&out); err != nil {
		t.Fatal(err)
	}
	var got []string
	for files := tar.NewReader(&out); ; {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %o %d:%d %s%s", h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, data)))
		if !h.ModTime.Equal(Epoch) {
			t.Errorf("%s has the time %s, want that of all files", h.Name, h.ModTime)
		}
	}
	want := []string{
		"a/ 755 0:0", "a/one 640 0:0 content of a/one", "a-b 640 0:0 content of a-b",
		"b/ 755 107:107", "b/link 777 107:107 two", "b/two 640 107:107 content of b/two",
		"etc/ 755 0:0", "etc/deep/ 755 0:0", "etc/deep/er/ 755 0:0", "etc/deep/er/file 600 0:0 made",
		"tmp/ 1777 0:0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestSameFilesMakeTheSameImage(t *testing.T) {
	var sums []string
	for range 2 {
		img, err := Assemble(Config{Cmd: []string{"/bin/sh"}, User: "107"}, sample(t))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "image.tar")
		if err := WriteArchive(file, Named{"patchbay.io/sample:1", img}, nil); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(data)))
	}
	if sums[0] != sums[1] {
		t.Errorf("two archives of the same files differ: %v", sums)
	}
}

func TestTreeKeepsTheFirstError(t *testing.T) {
	for _, c := range []struct {
		name string
		add  func(*Tree)
		want string
	}{
		{"missing file", func(t *Tree) { t.Host("/a", "/nonexistent/file") }, "no such file"},
		{"device", func(t *Tree) { t.Host("/a", "/dev/null") }, "only files, directories and links"},
		{"file and directory", func(t *Tree) { t.Dir("/a", 0o755, 0, 0); t.Bytes("/a", 0o644, nil) }, "a directory and a file at once"},
		{"owner of nothing", func(t *Tree) { t.Chown("/a", 1, 1) }, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := NewTree()
			c.add(tree)
			tree.Bytes("/later", 0o644, nil)
			if err := tree.WriteTar(io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}

// TestCpio reads what was written with the tool that everybody has.
func TestCpio(t *testing.T) {
	var out bytes.Buffer
	if err := sample(t).WriteCpio(&out); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("busybox", "cpio", "-i", "-d")
	cmd.Dir, cmd.Stdin = dir, &out
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v\n%s", err, text)
	}
	for file, want := range map[string]string{"a/one": "content of a/one", "b/link": "content of b/two", "etc/deep/er/file": "made"} {
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", file, got, err, want)
		}
	}
}

// TestClosureAgreesWithTheLoader compares with what the dynamic loader itself finds.
func TestClosureAgreesWithTheLoader(t *testing.T) {
	const program = "/usr/bin/qemu-img"
	got, err := Closure("/", program)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	for word := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		real, err := filepath.EvalSymlinks(word)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(got, real) {
			t.Errorf("the loader opens %s, which the closure lacks", real)
		}
	}
	if !slices.Contains(got, "/lib64") || !slices.Contains(got, program) {
		t.Errorf("the closure lacks the program or the link /lib64 that leads to its loader: %v", got)
	}
}

func TestClosureNamesTheMissingLibrary(t *testing.T) {
	root := t.TempDir()
	data, err := os.ReadFile("/usr/bin/qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	loader := filepath.Join(root, "lib64/ld-linux-x86-64.so.2")
	if err := os.MkdirAll(filepath.Dir(loader), 0o755); err != nil {
		t.Fatal(err)
	}
	for p, content := range map[string][]byte{"qemu-img": data, "lib64/ld-linux-x86-64.so.2": []byte("not ELF")} {
		if err := os.WriteFile(filepath.Join(root, p), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err = Closure(root, "/qemu-img")
	if err == nil || !strings.Contains(err.Error(), "/qemu-img needs lib") {
		t.Errorf("error %v, want one that says which library is missing", err)
	}
}

func TestFromPath(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	header := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 100)...)
	backed := slices.Clone(header)
	backed[15] = 104
	for _, c := range []struct {
		file string
		data []byte
		want string // part of the error; empty: accepted
	}{
		{"disk.qcow2", header, ""},
		{"disk.raw", []byte("x"), ""},
		{"installer.iso", nil, ""},
		{"overlay.qcow2", backed, "backing file"},
		{"notes.txt", []byte("x"), "neither qcow2 nor"},
	} {
		t.Run(c.file, func(t *testing.T) {
			tree, err := FromPath(write(c.file, c.data))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error %v, want one that says %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			entries, err := tree.Entries()
			if err != nil {
				t.Fatal(err)
			}
			if last := entries[len(entries)-1]; last.Path != "/disk/"+c.file || last.UID != DiskOwner {
				t.Errorf("the disk is %s of user %d", last.Path, last.UID)
			}
		})
	}
}

func TestParseName(t *testing.T) {
	for given, want := range map[string]string{
		"patchbay.io/guest/tiny":    "patchbay.io/guest/tiny:latest",
		"patchbay.io/guest/tiny:v1": "patchbay.io/guest/tiny:v1",
		"mine/web":                  "docker.io/mine/web:latest",
		"127.0.0.1:5000/web:1":      "127.0.0.1:5000/web:1",
	} {
		if got, err := ParseName(given); err != nil || got != want {
			t.Errorf("ParseName(%q) = %q, %v; want %q", given, got, err, want)
		}
	}
	if got, err := ParseName("Upper Case"); err == nil {
		t.Errorf("a bad name became %q", got)
	}
}

// TestArchiveTravels writes an archive, reads it, pushes it and finds the same image in the registry.
func TestArchiveTravels(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/guest/sample:1"
	img, err := Assemble(Config{}, sample(t))
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	file, written := filepath.Join(t.TempDir(), "sample.tar"), 0
	if err := WriteArchive(file, Named{ref, img}, func(n int) { written += n }); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != int64(written) {
		t.Errorf("progress told %d bytes, the file: %v, %v", written, info, err)
	}
	found, err := ReadArchive(file, t.TempDir())
	if err != nil || len(found) != 1 || found[0].Name != ref {
		t.Fatalf("read %v, %v; want one image %s", found, err, ref)
	}
	pushed, err := Push(t.Context(), found[0], true, nil)
	if err != nil || pushed.Digest != want.String() {
		t.Fatalf("pushed %v, %v; want digest %s", pushed, err, want)
	}
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stored.Digest(); err != nil || got != want {
		t.Errorf("the registry has %s, %v; want %s", got, err, want)
	}
}
