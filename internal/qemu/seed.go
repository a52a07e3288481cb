package qemu

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// noCloud is cloud-init's meta-data of a NoCloud seed.
type noCloud struct {
	InstanceType  string            `json:"instance-type,omitempty"`
	InstanceID    string            `json:"instance-id"`
	LocalHostname string            `json:"local-hostname,omitempty"`
	PublicKeys    map[string]string `json:"public-keys,omitempty"`
}

// configDrive is OpenStack's meta_data.json.
type configDrive struct {
	InstanceType string            `json:"instance_type,omitempty"`
	InstanceID   string            `json:"instance_id"`
	Hostname     string            `json:"hostname,omitempty"`
	UUID         string            `json:"uuid,omitempty"`
	Devices      []deviceTag       `json:"devices,omitempty"`
	PublicKeys   map[string]string `json:"public_keys,omitempty"`
}

// deviceTag tells the guest which of its devices carries a tag of the spec.
type deviceTag struct {
	Type    string   `json:"type"`
	Bus     string   `json:"bus"`
	Address string   `json:"address"`
	MAC     string   `json:"mac,omitempty"`
	Tags    []string `json:"tags"`
}

// document is one file of a seed with the three ways to give it.
type document struct {
	path           string
	inline, base64 string
	secret         bool
	suffix         string   // of the directory where the secret is mounted
	keys           []string // in the secret
}

// seed adds cloud-init's disk, when a volume asks for it. The volume alone makes it, a disk shows it to the guest.
func (b *builder) seed() error {
	for i := range b.vmi.Spec.Volumes {
		volume := &b.vmi.Spec.Volumes[i]
		if volume.CloudInitNoCloud == nil && volume.CloudInitConfigDrive == nil {
			continue
		}
		if b.start.Seed != nil {
			return fmt.Errorf("spec.volumes[%d]: a VM has one cloud-init volume at most; remove the others", i)
		}
		seed, err := b.makeSeed(volume)
		if err != nil {
			return fmt.Errorf("spec.volumes[%d]: %w", i, err)
		}
		if b.facts.Seed != nil {
			seed = &protocol.Seed{Label: seed.Label, Image: b.facts.Seed}
		}
		b.start.Seed = seed
	}
	return nil
}

func (b *builder) makeSeed(volume *virtv1.Volume) (*protocol.Seed, error) {
	var seed *protocol.Seed
	var meta any
	var metaPath string
	var documents []document
	if c := volume.CloudInitNoCloud; c != nil {
		seed, metaPath, meta = &protocol.Seed{Label: "cidata"}, "meta-data", b.noCloud()
		documents = []document{
			{"user-data", c.UserData, c.UserDataBase64, c.UserDataSecretRef != nil, protocol.UserDataSuffix, []string{"userdata", "userData"}},
			{"network-config", c.NetworkData, c.NetworkDataBase64, c.NetworkDataSecretRef != nil, protocol.NetworkDataSuffix, []string{"networkdata", "networkData"}},
		}
	} else {
		c, latest := volume.CloudInitConfigDrive, "openstack/latest/"
		seed, metaPath, meta = &protocol.Seed{Label: "config-2"}, latest+"meta_data.json", b.configDrive()
		documents = []document{
			{latest + "user_data", c.UserData, c.UserDataBase64, c.UserDataSecretRef != nil, protocol.UserDataSuffix, []string{"userdata", "userData"}},
			{latest + "network_data.json", c.NetworkData, c.NetworkDataBase64, c.NetworkDataSecretRef != nil, protocol.NetworkDataSuffix, []string{"networkdata", "networkData"}},
		}
	}
	text, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	seed.Files = map[string][]byte{metaPath: text}
	for _, d := range documents {
		if err := d.addTo(seed, volume.Name); err != nil {
			return nil, err
		}
	}
	return seed, nil
}

func (d document) addTo(seed *protocol.Seed, volume string) error {
	switch {
	case d.secret:
		if seed.FromDir == nil {
			seed.FromDir = map[string][]string{}
		}
		for _, key := range d.keys {
			seed.FromDir[d.path] = append(seed.FromDir[d.path], path.Join(protocol.VolumesDir, volume+d.suffix, key))
		}
	case d.inline != "":
		seed.Files[d.path] = []byte(d.inline)
	case d.base64 != "":
		data, err := base64.StdEncoding.DecodeString(d.base64)
		if err != nil {
			return errors.New(d.path + " is not valid base64; encode it again")
		}
		seed.Files[d.path] = data
	case d.suffix == protocol.UserDataSuffix:
		// Several guests read their network configuration only when there is user data.
		seed.Files[d.path] = []byte("#cloud-config\n")
	}
	return nil
}

func (b *builder) noCloud() noCloud {
	return noCloud{InstanceType: instanceType(b.vmi), InstanceID: FirmwareUUID(b.vmi), LocalHostname: Hostname(b.vmi), PublicKeys: b.publicKeys()}
}

func (b *builder) configDrive() configDrive {
	return configDrive{
		InstanceType: instanceType(b.vmi), InstanceID: b.vmi.Name + "." + b.vmi.Namespace, Hostname: Hostname(b.vmi),
		UUID: FirmwareUUID(b.vmi), Devices: b.tagged, PublicKeys: b.publicKeys(),
	}
}

func (b *builder) publicKeys() map[string]string {
	if len(b.facts.PublicKeys) == 0 {
		return nil
	}
	keys := map[string]string{}
	for i, key := range b.facts.PublicKeys {
		keys[fmt.Sprint(i)] = strings.TrimSpace(key)
	}
	return keys
}

func instanceType(vmi *virtv1.VirtualMachineInstance) string {
	if name := vmi.Annotations[virtv1.InstancetypeAnnotation]; name != "" {
		return name
	}
	return vmi.Annotations[virtv1.ClusterInstancetypeAnnotation]
}

// Hostname is the guest's name: the one in the spec, else the first label of the VMI's.
func Hostname(vmi *virtv1.VirtualMachineInstance) string {
	if vmi.Spec.Hostname != "" {
		return vmi.Spec.Hostname
	}
	label, _, _ := strings.Cut(vmi.Name, ".")
	return label[:min(len(label), 63)]
}
