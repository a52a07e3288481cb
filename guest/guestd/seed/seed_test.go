package seed

import (
	"bytes"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestLabel(t *testing.T) {
	iso := make([]byte, 17*2048)
	copy(iso[16*2048:], "\x01CD001\x01")
	copy(iso[16*2048+40:], "cidata                          ")
	fat16, fat32 := make([]byte, 512), make([]byte, 512)
	copy(fat16[43:], "CONFIG-2   FAT16   ")
	copy(fat32[71:], "CIDATA     FAT32   ")
	for _, c := range []struct {
		name          string
		data          []byte
		fstype, label string
	}{
		{"ISO 9660", iso, "iso9660", "cidata"},
		{"FAT16", fat16, "vfat", "CONFIG-2"},
		{"FAT32", fat32, "vfat", "CIDATA"},
		{"nothing", make([]byte, 512), "", ""},
		{"too short", make([]byte, 10), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if fstype, label := Label(bytes.NewReader(c.data)); fstype != c.fstype || label != c.label {
				t.Errorf("found %q %q, want %q %q", fstype, label, c.fstype, c.label)
			}
		})
	}
}

func TestRead(t *testing.T) {
	files := fstest.MapFS{
		"meta-data":                          {Data: []byte(`{"instance-id":"i","local-hostname":"h","public-keys":{"0":"k0","1":{"openssh-key":"k1"},"2":["k2"]}}`)},
		"user-data":                          {Data: []byte("#cloud-config\n")},
		"openstack/latest/meta_data.json":    {Data: []byte(`{"instance_id":"v.ns","uuid":"u","hostname":"d","public_keys":{"0":"k"}}`)},
		"openstack/latest/network_data.json": {Data: []byte(`{}`)},
	}
	for kind, want := range map[Kind]*Seed{
		NoCloud:     {Kind: NoCloud, Meta: Meta{InstanceID: "i", Hostname: "h", Keys: []string{"k0", "k1", "k2"}}, UserData: []byte("#cloud-config\n")},
		ConfigDrive: {Kind: ConfigDrive, Meta: Meta{InstanceID: "v.ns", Hostname: "d", Keys: []string{"k"}}, Network: []byte(`{}`)},
	} {
		got, err := Read(files, kind)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
}

func TestParseUserData(t *testing.T) {
	got, err := ParseUserData([]byte(`#cloud-config
user: cloud-user
password: 1234
chpasswd: {expire: false, list: "root:abc\nother:def", users: [{name: third, password: 5}]}
users:
- default
- plain
- {name: more, passwd: $6$hash, ssh_authorized_keys: [k]}
runcmd:
- echo hello
- [ls, -l, 1]
write_files:
- {path: /b, encoding: b64, content: aGk=, permissions: '0600'}
`))
	if err != nil {
		t.Fatal(err)
	}
	passwords, err := got.Chpasswd.Passwords()
	if err != nil {
		t.Fatal(err)
	}
	content, err := got.WriteFiles[0].Data()
	if err != nil {
		t.Fatal(err)
	}
	type summary struct {
		User, Password Text
		Users          []User
		Commands       []Command
		Passwords      [][2]string
		Content        string
	}
	want := summary{
		User: "cloud-user", Password: "1234",
		Users:     []User{{Name: "plain"}, {Name: "more", Keys: []string{"k"}, Passwd: "$6$hash", Password: "$6$hash"}},
		Commands:  []Command{{"/bin/sh", "-c", "echo hello"}, {"ls", "-l", "1"}},
		Passwords: [][2]string{{"third", "5"}, {"root", "abc"}, {"other", "def"}},
		Content:   "hi",
	}
	if diff := cmp.Diff(want, summary{got.User, got.Password, got.Users, got.Commands, passwords, string(content)}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseUserDataForms(t *testing.T) {
	if got, err := ParseUserData([]byte("#!/bin/sh\ntrue\n")); err != nil || len(got.Commands) != 1 || got.WriteFiles[0].Content != "#!/bin/sh\ntrue\n" {
		t.Errorf("a script became %+v, %v", got, err)
	}
	if got, err := ParseUserData(nil); err != nil || len(got.Commands) != 0 {
		t.Errorf("nothing became %+v, %v", got, err)
	}
	if _, err := ParseUserData([]byte("Content-Type: multipart/mixed")); err == nil || !strings.Contains(err.Error(), "no other form") {
		t.Errorf("a form that is not known gives %v", err)
	}
}
