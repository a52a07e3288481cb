package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/internal/golden"
)

var mine = Config{Name: "patchbay-default", Server: "https://127.0.0.1:6443", CA: []byte("ca"), ClientCert: []byte("cert"), ClientKey: []byte("key")}

// users is a file with another cluster, an extra context and a preference that must survive.
const users = `apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: work
  cluster: {server: "https://work:6443"}
contexts:
- name: work-admin
  context: {cluster: work, user: me, namespace: mine}
current-context: work-admin
users:
- name: me
  user: {token: secret}
`

func TestMergeKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Merge(path, mine); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "yaml", read(t, path))
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mine, got); diff != "" {
		t.Errorf("current context (-merged +read):\n%s", diff)
	}
}

func TestMergeTwiceReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	changed := mine
	changed.Server = "https://127.0.0.1:7443"
	for _, c := range []Config{mine, changed} {
		if err := Merge(path, c); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(changed, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRemoveTakesOnlyOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Merge(path, mine); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if got, err := Remove(path, mine.Name); got != want || err != nil {
			t.Errorf("removed: %v, %v; want %v", got, err, want)
		}
	}
	golden.Check(t, "yaml", read(t, path))
}

func TestABrokenFileIsNotOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Merge(path, mine)
	if err == nil || !strings.Contains(err.Error(), "repair or move the file") {
		t.Errorf("got %v", err)
	}
	if got := read(t, path); got != "{broken" {
		t.Errorf("the file became %q", got)
	}
}

func TestANewFileBelongsToTheOwnerOfItsDirectory(t *testing.T) {
	home := t.TempDir()
	const uid = 12345
	if err := os.Chown(home, uid, uid); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, ".kube", "config")
	if err := Merge(path, mine); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, filepath.Dir(path)} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != uid {
			t.Errorf("%s belongs to user %d", name, owner)
		}
	}
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode is %v; the file holds a key", info.Mode())
	}
}

func TestUserFile(t *testing.T) {
	cases := map[string]struct{ kubeconfig, sudoUser, want string }{
		"first of the list": {"/a/config:/b/config", "", "/a/config"},
		"home":              {"", "", "/home/me/.kube/config"},
		"caller of sudo":    {"", "daemon", "/usr/sbin/.kube/config"},
		"unknown caller":    {"", "no-such-user", "/home/me/.kube/config"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.kubeconfig)
			t.Setenv("SUDO_USER", c.sudoUser)
			t.Setenv("HOME", "/home/me")
			if got, err := UserFile(); got != c.want || err != nil {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
