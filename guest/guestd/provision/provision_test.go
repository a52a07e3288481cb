package provision

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"patchbay/guest/guestd/seed"
)

// newMachine is a guest in a directory, which notes its name and what it ran.
func newMachine(t *testing.T, did *[]string) Machine {
	t.Helper()
	root := t.TempDir()
	for file, content := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\npatchbay:x:1000:1000::/home/patchbay:/bin/sh\n",
		"etc/group":  "root:x:0:\n",
		"etc/shadow": "root:!:::::::\npatchbay:!:::::::\n",
	} {
		p := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Machine{
		Root:        root,
		SetHostname: func(name string) error { *did = append(*did, "hostname "+name); return nil },
		Run:         func(argv []string) error { *did = append(*did, "run "+strings.Join(argv, " ")); return nil },
	}
}

func (m Machine) read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(m.Root, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const userData = `#cloud-config
user: cloud-user
password: secret
ssh_authorized_keys: [key-b]
users: [{name: second, hashed_passwd: $6$given}]
chpasswd: {list: ["root:$6$rooted"]}
bootcmd: [[boot]]
runcmd: [[once]]
write_files:
- {path: /opt/x/file, content: hello, permissions: '0640', owner: second}
- {path: /opt/x/file, content: " again", append: true, permissions: '0640', owner: second}
`

func TestApply(t *testing.T) {
	var did []string
	m := newMachine(t, &did)
	s := &seed.Seed{Meta: seed.Meta{InstanceID: "one", Hostname: "web.example.test", Keys: []string{"key-a"}}, UserData: []byte(userData)}
	commands, err := m.Apply(s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]seed.Command{{"once"}}, commands); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"hostname web", "run boot"}, did); diff != "" {
		t.Errorf("done at once (-want +got):\n%s", diff)
	}
	if got := m.read(t, "/home/cloud-user/.ssh/authorized_keys"); got != "key-a\nkey-b\n" {
		t.Errorf("authorized keys: %q", got)
	}
	if got := m.read(t, "/opt/x/file"); got != "hello again" {
		t.Errorf("write_files wrote %q", got)
	}
	shadow := m.read(t, "/etc/shadow")
	for _, want := range []string{"root:$6$rooted:", "second:$6$given:", "cloud-user:$6$"} {
		if !strings.Contains(shadow, want) {
			t.Errorf("shadow lacks %q:\n%s", want, shadow)
		}
	}
	if strings.Contains(shadow, "secret") {
		t.Error("a password is kept as it was given")
	}
	if passwd := m.read(t, "/etc/passwd"); !strings.Contains(passwd, "cloud-user:x:1001:1001:") || !strings.Contains(passwd, "second:x:1002:1002:") {
		t.Errorf("passwd:\n%s", passwd)
	}
}

func TestInstanceIsProvisionedOnce(t *testing.T) {
	var did []string
	m := newMachine(t, &did)
	s := &seed.Seed{Meta: seed.Meta{InstanceID: "one"}, UserData: []byte(userData)}
	for boot, want := range []int{1, 0} {
		commands, err := m.Apply(s)
		if err != nil || len(commands) != want {
			t.Errorf("boot %d gives commands %v, %v; want %d", boot+1, commands, err, want)
		}
	}
	s.Meta.InstanceID = "two"
	if commands, err := m.Apply(s); err != nil || len(commands) != 1 {
		t.Errorf("another instance gives commands %v, %v; want one", commands, err)
	}
	if got := m.read(t, "/home/cloud-user/.ssh/authorized_keys"); got != "key-b\n" {
		t.Errorf("authorized keys: %q, want the key once", got)
	}
	if diff := cmp.Diff([]string{"run boot", "run boot", "run boot"}, did); diff != "" {
		t.Errorf("boot commands (-want +got):\n%s", diff)
	}
}

func TestApplyGoesOnAfterAFailure(t *testing.T) {
	var did []string
	m := newMachine(t, &did)
	s := &seed.Seed{UserData: []byte("#cloud-config\nwrite_files:\n- {path: /a, owner: nobody-here}\n- {path: /b, content: there}\nchpasswd: {list: ['ghost:x']}\n")}
	_, err := m.Apply(s)
	for _, want := range []string{"there is no user nobody-here", "password of ghost: there is no such user"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
	if got := m.read(t, "/b"); got != "there" {
		t.Errorf("the file after the bad one holds %q", got)
	}
}
