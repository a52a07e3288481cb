package launcher_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/kdomanski/iso9660"

	"patchbay/internal/launcher/launchertest"
	"patchbay/internal/launcher/protocol"
	"patchbay/internal/qemu/qmp"
)

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v: %s", args, err, out)
	}
	return out
}

// volume makes a directory of the pod that user 107 may write to, and returns a path in it.
func volume(t *testing.T, pod *launchertest.Pod, path string) string {
	t.Helper()
	full := filepath.Join(pod.Volumes, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Dir(full), 107, 107); err != nil {
		t.Fatal(err)
	}
	return full
}

// info is what qemu-img says of an image.
type info struct {
	Format        string `json:"format"`
	VirtualSize   int64  `json:"virtual-size"`
	BackingFile   string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
}

func imageInfo(t *testing.T, path string) (i info) {
	t.Helper()
	// --force-share: the running QEMU holds the image's lock.
	if err := json.Unmarshal(qemuImg(t, "info", "--force-share", "--output", "json", path), &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestDisksArePrepared(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	qemuImg(t, "create", "-q", "-f", "qcow2", volume(t, pod, "image/disk/debian.qcow2"), "64M")
	if err := os.WriteFile(volume(t, pod, "image/disk/.hidden"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A guest has written the head of a qcow2 file to its raw disk. It stays raw.
	qemuImg(t, "create", "-q", "-f", "qcow2", volume(t, pod, "claim/disk.img"), "1G")
	qemuImg(t, "create", "-q", "-f", "raw", volume(t, pod, "plain/disk.raw"), "8M")
	volume(t, pod, "new/disk.img")
	s := start("disks")
	s.Disks = []protocol.Disk{
		{ID: "image", Kind: protocol.Overlay, Source: "/volumes/image/disk"},
		{ID: "claim", Kind: protocol.Overlay, Source: "/volumes/claim/disk.img", SourceFormat: "raw"},
		{ID: "plain", Kind: protocol.Overlay, Source: "/volumes/plain/disk.raw", SizeBytes: 16 << 20},
		{ID: "empty", Kind: protocol.Empty, SizeBytes: 3 << 30},
		{ID: "new", Kind: protocol.File, Source: "/volumes/new/disk.img", Create: true, SizeBytes: 5 << 20},
	}
	for _, disk := range s.Disks {
		s.Args = append(s.Args, "-blockdev", "driver=file,node-name="+disk.ID+",filename={disk:"+disk.ID+"}")
	}
	s.Args = append(s.Args, "-name", "guest=direct-{direct:new}")
	run(t, pod, s)

	size, err := os.Stat(filepath.Join(pod.Volumes, "claim/disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]info{
		"image": {"qcow2", 64 << 20, "/volumes/image/disk/debian.qcow2", "qcow2"},
		"claim": {"qcow2", (size.Size() + 511) / 512 * 512, "/volumes/claim/disk.img", "raw"},
		"plain": {"qcow2", 16 << 20, "/volumes/plain/disk.raw", "raw"},
		"empty": {"qcow2", 3 << 30, "", ""},
	} {
		if diff := cmp.Diff(want, imageInfo(t, filepath.Join(pod.Disks, id+".qcow2"))); diff != "" {
			t.Errorf("disk %s (-want +got):\n%s", id, diff)
		}
	}
	made, err := os.Stat(filepath.Join(pod.Volumes, "new/disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	stat := made.Sys().(*syscall.Stat_t)
	if made.Size() != 5<<20 || stat.Blocks != 0 || stat.Uid != 107 || made.Mode() != 0o600 {
		t.Errorf("the new disk has %d bytes in %d blocks, owner %d, mode %v; want 5 MiB, sparse, for user 107 alone", made.Size(), stat.Blocks, stat.Uid, made.Mode())
	}
	var name struct {
		Name string `json:"name"`
	}
	if err := monitor(t, pod).Execute(t.Context(), qmp.Command{Name: "query-name"}, &name); err != nil || !strings.HasPrefix(name.Name, "direct-o") {
		t.Errorf("the placeholder for direct became %q, %v; want on or off", name.Name, err)
	}
}

func TestDisksThatAreRefused(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	qemuImg(t, "create", "-q", "-f", "raw", volume(t, pod, "two/disk/a.img"), "1M")
	qemuImg(t, "create", "-q", "-f", "raw", volume(t, pod, "two/disk/b.img"), "1M")
	volume(t, pod, "none/disk/x")
	qemuImg(t, "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/volumes/other-userdata/userdata", volume(t, pod, "thief/disk/a.qcow2"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+volume(t, pod, "split/data"), volume(t, pod, "split/disk/a.qcow2"), "1M")
	closed := volume(t, pod, "closed/disk/a.img")
	if err := os.WriteFile(closed, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(pod.Volumes, "locked")
	if err := os.Mkdir(locked, 0o755); err != nil {
		t.Fatal(err)
	}
	volume(t, pod, "room/x")
	for name, c := range map[string]struct {
		disk protocol.Disk
		want string
	}{
		"no image":      {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/absent/disk"}, "holds its disk in the directory /disk"},
		"two files":     {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/two/disk"}, "several files in /disk (a.img, b.img); name one"},
		"no file":       {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/none/disk"}, "holds no file in /disk"},
		"backing file":  {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/thief/disk"}, "has a backing file; convert it"},
		"data file":     {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/split/disk"}, "keeps its data in another file; convert it"},
		"not readable":  {protocol.Disk{Kind: protocol.Overlay, Source: "/volumes/closed/disk"}, "cannot be read by user 107"},
		"no size":       {protocol.Disk{Kind: protocol.Empty}, "needs a size"},
		"no host disk":  {protocol.Disk{Kind: protocol.File, Source: "/volumes/room/y"}, "make it, or set type: DiskOrCreate"},
		"directory":     {protocol.Disk{Kind: protocol.File, Source: "/volumes/room"}, "is a directory"},
		"too large":     {protocol.Disk{Kind: protocol.File, Source: "/volumes/room/y", Create: true, SizeBytes: 1 << 50}, "give the volume more"},
		"not writable":  {protocol.Disk{Kind: protocol.File, Source: "/volumes/locked/y", Create: true, SizeBytes: 1 << 20}, "user 107 cannot make a file"},
		"not a device":  {protocol.Disk{Kind: protocol.Block, Source: "/volumes/closed/disk/a.img"}, "no block device"},
		"qemu-img says": {protocol.Disk{ID: strings.Repeat("n", 300), Kind: protocol.Empty, SizeBytes: 1 << 20}, "qemu-img ended with 1"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.disk.ID == "" {
				c.disk.ID = "d"
			}
			_, err := pod.Run.Start(t.Context(), protocol.Start{ID: "x", Disks: []protocol.Disk{c.disk}}, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a refusal that says %q", err, c.want)
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(pod.Volumes, "*/*.partial")); err != nil || len(left) != 0 {
		t.Errorf("attempts left %v, %v", left, err)
	}
}

func TestSeed(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	if err := os.WriteFile(volume(t, pod, "ci-userdata/userData"), []byte("#cloud-config\nfrom: secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := start("seed")
	s.Seed = &protocol.Seed{
		Label: "cidata",
		Files: map[string][]byte{
			"meta-data": []byte(`{"instance-id":"i"}`), "network-config": []byte("version: 2\n"),
			"vendor-data": bytes.Repeat([]byte("long "), 60_000), // a request that takes many reads
		},
		FromDir: map[string][]string{
			"user-data": {"/volumes/ci-userdata/userdata", "/volumes/ci-userdata/userData"},
			"missing":   {"/volumes/ci-networkdata/networkdata", "/volumes/ci-networkdata/networkData"},
		},
	}
	if _, err := pod.Run.Start(t.Context(), s, nil); err == nil || !strings.Contains(err.Error(), "the secret has no key networkdata or networkData; add one") {
		t.Errorf("got %v, want a refusal that names the keys", err)
	}
	delete(s.Seed.FromDir, "missing")
	s.Args = append(s.Args, "-blockdev", "driver=file,node-name=seed,read-only=on,filename={seed}")
	run(t, pod, s)
	paths, err := filepath.Glob(filepath.Join(pod.RunPath, "*.iso"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("the run directory holds the seeds %v, %v; want one", paths, err)
	}
	if got := isoFiles(t, paths[0]); got["user-data"] != "#cloud-config\nfrom: secret\n" || got["meta-data"] != `{"instance-id":"i"}` || got["network-config"] != "version: 2\n" || len(got["vendor-data"]) != 300_000 {
		t.Errorf("the seed holds %q", got)
	}
	if mode, err := os.Stat(paths[0]); err != nil || mode.Mode() != 0o600 {
		t.Errorf("the seed's mode is %v, %v; it holds secrets", mode.Mode(), err)
	}
}

func isoFiles(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	image, err := iso9660.OpenImage(file)
	if err != nil {
		t.Fatal(err)
	}
	root, err := image.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	children, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, child := range children {
		data, err := io.ReadAll(child.Reader())
		if err != nil {
			t.Fatal(err)
		}
		files[child.Name()] = string(data)
	}
	return files
}

func TestDigestsOfSources(t *testing.T) {
	pod := launchertest.Start(t, launchertest.Config{})
	one, two := volume(t, pod, "one/disk/os.img"), volume(t, pod, "two/os.img")
	for _, path := range []string{one, two} {
		if err := os.WriteFile(path, []byte("the same"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sources := []string{"/volumes/one/disk", "/volumes/two/os.img"}
	got, err := pod.Run.Digest(t.Context(), sources)
	const want = "fa0487f2dc91544ab4b9f5b1d59b7eb2bf68807a6e42cdf22fce4e0bc4b84cb2"
	if err != nil || cmp.Diff([]string{want, want}, got) != "" {
		t.Fatalf("checksums %v, %v; want %s twice", got, err, want)
	}
	if _, err := pod.Run.Digest(t.Context(), []string{"/volumes/none"}); err == nil || !strings.Contains(err.Error(), "the image has no none") {
		t.Errorf("of a file that is not there: %v", err)
	}
}
