package credentials

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/qemu/qga"
)

// volumes keeps secrets as the kubelet does: values are links into a directory that is replaced as a whole.
type volumes struct {
	t    *testing.T
	root string
	n    int
}

func newVolumes(t *testing.T) *volumes { return &volumes{t: t, root: t.TempDir()} }

func (v *volumes) dir(secret string) string { return filepath.Join(v.root, secret) }

func (v *volumes) set(secret string, values map[string]string) {
	v.t.Helper()
	v.n++
	dir := v.dir(secret)
	fresh := filepath.Join(dir, fmt.Sprintf("..version-%d", v.n))
	v.must(os.MkdirAll(fresh, 0o755))
	for name, value := range values {
		v.must(os.WriteFile(filepath.Join(fresh, name), []byte(value), 0o600))
	}
	v.must(os.Symlink(filepath.Base(fresh), filepath.Join(dir, "..data.new")))
	v.must(os.Rename(filepath.Join(dir, "..data.new"), filepath.Join(dir, "..data")))
	entries, err := os.ReadDir(dir)
	v.must(err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") {
			v.must(os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	for name := range values {
		v.must(os.Symlink("..data/"+name, filepath.Join(dir, name)))
	}
}

func (v *volumes) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

func agentKeys(secret string, users ...string) virtv1.AccessCredential {
	return virtv1.AccessCredential{SSHPublicKey: &virtv1.SSHPublicKeyAccessCredential{
		Source: virtv1.SSHPublicKeyAccessCredentialSource{Secret: &virtv1.AccessCredentialSecretSource{SecretName: secret}},
		PropagationMethod: virtv1.SSHPublicKeyAccessCredentialPropagationMethod{
			QemuGuestAgent: &virtv1.QemuGuestAgentSSHPublicKeyAccessCredentialPropagation{Users: users},
		},
	}}
}

func seedKeys(secret string, how virtv1.SSHPublicKeyAccessCredentialPropagationMethod) virtv1.AccessCredential {
	c := agentKeys(secret)
	c.SSHPublicKey.PropagationMethod = how
	return c
}

func passwords(secret string) virtv1.AccessCredential {
	return virtv1.AccessCredential{UserPassword: &virtv1.UserPasswordAccessCredential{
		Source:            virtv1.UserPasswordAccessCredentialSource{Secret: &virtv1.AccessCredentialSecretSource{SecretName: secret}},
		PropagationMethod: virtv1.UserPasswordAccessCredentialPropagationMethod{QemuGuestAgent: &virtv1.QemuGuestAgentUserPasswordAccessCredentialPropagation{}},
	}}
}

func TestRead(t *testing.T) {
	v := newVolumes(t)
	v.set("ops", map[string]string{"b": "ssh-ed25519 B\n\n# a comment\nssh-ed25519 B2", "a": "ssh-ed25519 A"})
	v.set("dev", map[string]string{"key": "ssh-ed25519 A\nssh-ed25519 D\n"})
	v.set("empty", nil)
	v.set("words", map[string]string{"alice": "s3cret\n"})
	noCloud := virtv1.SSHPublicKeyAccessCredentialPropagationMethod{NoCloud: &virtv1.NoCloudSSHPublicKeyAccessCredentialPropagation{}}
	drive := virtv1.SSHPublicKeyAccessCredentialPropagationMethod{ConfigDrive: &virtv1.ConfigDriveSSHPublicKeyAccessCredentialPropagation{}}
	list := []virtv1.AccessCredential{
		agentKeys("ops", "alice", "root"), agentKeys("dev", "alice"), agentKeys("empty", "bob"), passwords("words"),
		seedKeys("ops", noCloud), seedKeys("dev", drive),
	}
	got, err := ForAgent(list, v.dir)
	v.must(err)
	want := Wanted{
		Keys: map[string][]string{
			"alice": {"ssh-ed25519 A", "ssh-ed25519 B", "ssh-ed25519 B2", "ssh-ed25519 D"},
			"root":  {"ssh-ed25519 A", "ssh-ed25519 B", "ssh-ed25519 B2"},
			"bob":   nil, // whose keys are to be removed
		},
		Passwords: map[string]string{"alice": "s3cret"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("for the agent (-want +got):\n%s", diff)
	}
	seed, err := ForSeed(list, v.dir)
	v.must(err)
	if diff := cmp.Diff([]string{"ssh-ed25519 A", "ssh-ed25519 B", "ssh-ed25519 B2", "ssh-ed25519 D"}, seed); diff != "" {
		t.Errorf("for the seed (-want +got):\n%s", diff)
	}
	if !NeedAgent(list) || NeedAgent(list[4:]) {
		t.Error("who needs the agent is not told from who does not")
	}
	if _, err := ForAgent([]virtv1.AccessCredential{agentKeys("late", "alice")}, v.dir); err == nil || !strings.Contains(err.Error(), `secret "late" is not in the virtual machine's pod`) {
		t.Errorf("a secret that was named after the start: %v", err)
	}
}

// fakeGuest is a guest with some users.
type fakeGuest struct {
	mu        sync.Mutex
	old       bool // knows no SSH commands
	users     map[string]string
	passwords map[string]string
	calls     int
}

var errNoUser = errors.New("no such user")

func (g *fakeGuest) SetAuthorizedKeys(_ context.Context, user string, keys []string) error {
	if g.old {
		return &qga.Error{Class: "CommandNotFound", Desc: "The command guest-ssh-add-authorized-keys has not been found"}
	}
	return g.keys(user, strings.Join(keys, "\n"))
}

func (g *fakeGuest) keys(user, text string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	if _, known := g.users[user]; !known {
		return errNoUser
	}
	g.users[user] = text
	return nil
}

func (g *fakeGuest) SetPassword(_ context.Context, user, password string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passwords[user] = password
	return nil
}

func (g *fakeGuest) Exec(_ context.Context, path string, args []string, input []byte) (qga.ExecResult, error) {
	user := args[len(args)-1]
	if path != "su" || args[2] != "-c" {
		return qga.ExecResult{}, fmt.Errorf("%s %q", path, args)
	}
	if g.keys(user, strings.TrimSpace(string(input))) != nil {
		return qga.ExecResult{ExitCode: 1, Stderr: []byte("su: user does not exist\n")}, nil
	}
	return qga.ExecResult{}, nil
}

func (g *fakeGuest) has(user string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.users[user]
}

func TestApply(t *testing.T) {
	w := Wanted{
		Keys:      map[string][]string{"alice": {"A", "B"}, "bob": nil, "nobody": {"N"}},
		Passwords: map[string]string{"alice": "s3cret"},
	}
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old agent %t", old), func(t *testing.T) {
			guest := &fakeGuest{old: old, users: map[string]string{"alice": "", "bob": "X"}, passwords: map[string]string{}}
			err := apply(t.Context(), guest, w)
			if err == nil || !strings.Contains(err.Error(), `set the SSH keys of user "nobody": `) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(map[string]string{"alice": "A\nB", "bob": ""}, guest.users); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !maps.Equal(guest.passwords, w.Passwords) {
				t.Errorf("passwords %v", guest.passwords)
			}
		})
	}
	t.Run("a name that is an option", func(t *testing.T) {
		guest := &fakeGuest{old: true, users: map[string]string{}}
		if err := apply(t.Context(), guest, Wanted{Keys: map[string][]string{"--login": nil}}); err == nil || guest.calls != 0 {
			t.Errorf("error %v after %d calls", err, guest.calls)
		}
	})
}

// A secret that changes reaches the guest without anybody's doing: keys are added, rotated and revoked.
func TestKeeperFollowsSecrets(t *testing.T) {
	v := newVolumes(t)
	v.set("ops", map[string]string{"one": "ssh-ed25519 A"})
	guest := &fakeGuest{users: map[string]string{"alice": "by hand"}, passwords: map[string]string{}}
	reports := make(chan error, 100)
	keeper := Keeper{Credentials: []virtv1.AccessCredential{agentKeys("ops", "alice")}, Dir: v.dir, Guest: guest, Report: func(err error) { reports <- err }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); keeper.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	expect := func(keys string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for guest.has("alice") != keys {
			select {
			case err := <-reports:
				if err != nil {
					t.Error(err)
				}
			case <-deadline:
				t.Fatalf("the guest has %q, want %q", guest.has("alice"), keys)
			}
		}
	}
	expect("ssh-ed25519 A")
	v.set("ops", map[string]string{"one": "ssh-ed25519 A", "two": "ssh-ed25519 B"})
	expect("ssh-ed25519 A\nssh-ed25519 B")
	v.set("ops", map[string]string{"two": "ssh-ed25519 C"})
	expect("ssh-ed25519 C")
	v.set("ops", nil)
	expect("")
}
