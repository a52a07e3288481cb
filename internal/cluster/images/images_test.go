package images

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func archive(t *testing.T, files ...string) string {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFingerprintFollowsTheContent(t *testing.T) {
	of := func(files ...string) string {
		t.Helper()
		f, err := Fingerprint(archive(t, files...))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	base := of("layer", "big", "manifest.json", "A")
	cases := map[string]struct {
		got  string
		same bool
	}{
		"other layer file, same list": {of("layer", "other", "manifest.json", "A"), true},
		"with a leading dot":          {of("./manifest.json", "A"), true},
		"other list":                  {of("layer", "big", "manifest.json", "B"), false},
		"OCI list too":                {of("manifest.json", "A", "index.json", "B"), false},
	}
	for name, c := range cases {
		if (c.got == base) != c.same {
			t.Errorf("%s: same is %v", name, c.got == base)
		}
	}
}

func TestFingerprintRefuses(t *testing.T) {
	notTar := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(notTar, bytes.Repeat([]byte("x"), 2048), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		notTar:                       "is not an image archive (tar)",
		archive(t, "etc/passwd", ""): "holds neither index.json nor manifest.json; make it with `docker save`",
		"/no/such.tar":               "no such file",
	} {
		if _, err := Fingerprint(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestSandboxImage(t *testing.T) {
	dir := t.TempDir()
	program, path := filepath.Join(dir, "patchbay-pause"), filepath.Join(dir, "made", "sandbox.tar")
	if err := os.WriteFile(program, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteSandbox(program, path); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(SandboxName)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(path, &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/pause"}, config.Config.Entrypoint); diff != "" || config.OS != "linux" || config.Config.User != "65535:65535" {
		t.Errorf("config is %+v", config.Config)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("layers: %d, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	header, err := tar.NewReader(content).Next()
	if err != nil || header.Name != "pause" || header.Mode != 0o755 || header.Uid != 0 {
		t.Errorf("the layer begins with %+v, %v", header, err)
	}
}
