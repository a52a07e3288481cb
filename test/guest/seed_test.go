package guest_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs"
	diskpkg "github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/crypto/ssh"
)

// seedDisk writes an ISO image with Joliet and Rock Ridge, as KubeVirt's seeds are, and returns QEMU's arguments for it.
func seedDisk(t *testing.T, label string, files map[string]string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "seed.iso")
	image, err := diskfs.Create(file, 4<<20, diskfs.SectorSizeDefault)
	if err != nil {
		t.Fatal(err)
	}
	image.LogicalBlocksize = 2048
	created, err := image.CreateFilesystem(diskpkg.FilesystemSpec{FSType: filesystem.TypeISO9660, VolumeLabel: label})
	if err != nil {
		t.Fatal(err)
	}
	iso := created.(*iso9660.FileSystem)
	for name, content := range files {
		if err := writeISO(iso, name, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: label}); err != nil {
		t.Fatal(err)
	}
	return []string{"-drive", "file=" + file + ",if=none,id=seed,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=seed"}
}

func writeISO(iso *iso9660.FileSystem, name, content string) error {
	if err := iso.Mkdir(path.Dir("/" + name)); err != nil {
		return err
	}
	f, err := iso.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(content))
	return errors.Join(err, f.Close())
}

// newKey makes an SSH key pair: how to sign in, and the line for authorized_keys.
func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// run logs in by SSH and returns a command's output.
func (l *lab) run(t *testing.T, user, address string, auth ssh.AuthMethod, command string, limit time.Duration) string {
	t.Helper()
	var out []byte
	within(t, limit, "ssh "+user+"@"+address, func() error {
		c, err := l.dial("tcp", address, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // a TCP socket has deadlines
		conn, channels, requests, err := ssh.NewClientConn(c, address, &ssh.ClientConfig{
			User: user, Auth: []ssh.AuthMethod{auth}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		if err != nil {
			return err
		}
		session, err := ssh.NewClient(conn, channels, requests).NewSession()
		if err != nil {
			return err
		}
		out, err = session.CombinedOutput(command)
		return err
	})
	return string(out)
}
