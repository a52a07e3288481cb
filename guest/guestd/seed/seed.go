// Package seed finds the disk that carries a virtual machine's cloud-init data and reads it: NoCloud (label cidata) or
// ConfigDrive (label config-2), on an ISO 9660 or FAT file system. It only reads; package provision carries it out.
package seed

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Kind is the data source's form.
type Kind string

// The forms, called as cloud-init calls them.
const (
	NoCloud     Kind = "NoCloud"
	ConfigDrive Kind = "ConfigDrive"
)

// Seed is what a seed disk holds.
type Seed struct {
	Kind     Kind
	Meta     Meta
	UserData []byte
	Network  []byte // empty: none given
}

// FindDevice returns the device in dir (such as /dev) that carries a seed and the type of its file system. The form is "" when there is none.
func FindDevice(dir string) (device, fstype string, kind Kind) {
	for _, pattern := range []string{"sr*", "vd*", "sd*"} {
		devices, _ := filepath.Glob(filepath.Join(dir, pattern)) // the patterns are well formed
		for _, d := range devices {
			if fstype, label := probe(d); fstype != "" {
				switch strings.ToLower(label) {
				case "cidata":
					return d, fstype, NoCloud
				case "config-2":
					return d, fstype, ConfigDrive
				}
			}
		}
	}
	return "", "", ""
}

func probe(device string) (fstype, label string) {
	f, err := os.Open(device)
	if err != nil {
		return "", "" // a drive with no disc in it
	}
	defer f.Close()
	return Label(f)
}

// Label recognises ISO 9660 and FAT and returns the volume's label.
func Label(r io.ReaderAt) (fstype, label string) {
	volume := make([]byte, 72)
	if _, err := r.ReadAt(volume, 16*2048); err == nil && string(volume[1:6]) == "CD001" {
		return "iso9660", strings.TrimRight(string(volume[40:72]), " \x00")
	}
	boot := make([]byte, 90)
	if _, err := r.ReadAt(boot, 0); err != nil {
		return "", ""
	}
	switch { // the label lies beside the type: at 43 in FAT12/16, at 71 in FAT32
	case strings.HasPrefix(string(boot[54:]), "FAT"):
		return "vfat", strings.TrimRight(string(boot[43:54]), " ")
	case strings.HasPrefix(string(boot[82:]), "FAT"):
		return "vfat", strings.TrimRight(string(boot[71:82]), " ")
	}
	return "", ""
}

// Read reads a mounted seed disk.
func Read(files fs.FS, kind Kind) (*Seed, error) {
	names := map[Kind][3]string{
		NoCloud:     {"meta-data", "user-data", "network-config"},
		ConfigDrive: {"openstack/latest/meta_data.json", "openstack/latest/user_data", "openstack/latest/network_data.json"},
	}[kind]
	s := &Seed{Kind: kind}
	meta, err := optional(files, names[0])
	if err != nil {
		return nil, err
	}
	if s.Meta, err = parseMeta(meta); err != nil {
		return nil, fmt.Errorf("%s: %w", names[0], err)
	}
	if s.UserData, err = optional(files, names[1]); err != nil {
		return nil, err
	}
	s.Network, err = optional(files, names[2])
	return s, err
}

func optional(files fs.FS, name string) ([]byte, error) {
	data, err := fs.ReadFile(files, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}
