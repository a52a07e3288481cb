package admission

import (
	"encoding/base64"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

// maxSeed is the most user data or network data that a spec may hold, in bytes; more belongs in a Secret.
const maxSeed = 2048

// volumes are the rules about the volumes of a spec.
func (c *checker) volumes() {
	first := map[string]int{}
	accounts := 0
	for i, v := range c.spec.Volumes {
		at := c.root.Child("volumes").Index(i)
		if other, ok := first[v.Name]; ok {
			c.invalid(at.Child("name"), "%s and %s must not have the same Name.", at, c.root.Child("volumes").Index(other))
		} else {
			first[v.Name] = i
		}
		if countVolumeSources(v.VolumeSource) != 1 {
			c.invalid(at, "%s must have exactly one source type set", at)
		}
		if v.ServiceAccount != nil {
			accounts++
		}
		c.cloudInit(at, v.VolumeSource)
		c.hostDisk(at.Child("hostDisk"), v.HostDisk)
	}
	if at := c.root.Child("volumes"); accounts > 1 {
		c.invalid(at, "%s must have max one serviceAccount volume set", at)
	}
}

func countVolumeSources(v virtv1.VolumeSource) int {
	return count(v.HostDisk != nil, v.PersistentVolumeClaim != nil, v.CloudInitNoCloud != nil, v.CloudInitConfigDrive != nil,
		v.Sysprep != nil, v.ContainerDisk != nil, v.Ephemeral != nil, v.EmptyDisk != nil, v.DataVolume != nil, v.ConfigMap != nil,
		v.Secret != nil, v.DownwardAPI != nil, v.ServiceAccount != nil, v.DownwardMetrics != nil, v.MemoryDump != nil, v.ContainerPath != nil)
}

func (c *checker) hostDisk(at *field.Path, d *virtv1.HostDisk) {
	if d == nil {
		return
	}
	if d.Path == "" {
		c.required(at.Child("path"), "%s is required for hostDisk volume", at.Child("path"))
	}
	switch d.Type {
	case virtv1.HostDiskExists:
		if !d.Capacity.IsZero() {
			c.invalid(at.Child("capacity"), "%s is allowed to pass only with %s equal to '%s'",
				at.Child("capacity"), at.Child("type"), virtv1.HostDiskExistsOrCreate)
		}
	case virtv1.HostDiskExistsOrCreate:
	default:
		c.invalid(at.Child("type"), "%s has invalid value '%s', allowed are '%s' or '%s'",
			at.Child("type"), d.Type, virtv1.HostDiskExists, virtv1.HostDiskExistsOrCreate)
	}
}

// seed is one kind of cloud-init data: in the spec, encoded in the spec, or in a Secret.
type seed struct {
	name, secretField string // "userdata", "UserDataSecretRef"
	plain, encoded    string
	encodedField      string
	secret            *corev1.LocalObjectReference
}

func (s seed) sources() int {
	return count(s.plain != "", s.encoded != "", s.secret != nil && s.secret.Name != "")
}

func (c *checker) cloudInit(volume *field.Path, v virtv1.VolumeSource) {
	if n := v.CloudInitNoCloud; n != nil {
		c.seeds(volume.Child("cloudInitNoCloud"),
			userSeed(n.UserData, n.UserDataBase64, n.UserDataSecretRef),
			networkSeed(n.NetworkData, n.NetworkDataBase64, n.NetworkDataSecretRef))
	}
	if d := v.CloudInitConfigDrive; d != nil {
		c.seeds(volume.Child("cloudInitConfigDrive"),
			userSeed(d.UserData, d.UserDataBase64, d.UserDataSecretRef),
			networkSeed(d.NetworkData, d.NetworkDataBase64, d.NetworkDataSecretRef))
	}
}

func userSeed(plain, encoded string, secret *corev1.LocalObjectReference) seed {
	return seed{"userdata", "UserDataSecretRef", plain, encoded, "userDataBase64", secret}
}

func networkSeed(plain, encoded string, secret *corev1.LocalObjectReference) seed {
	return seed{"networkdata", "NetworkDataSecretRef", plain, encoded, "networkDataBase64", secret}
}

func (c *checker) seeds(at *field.Path, user, network seed) {
	c.seed(at, user)
	c.seed(at, network)
	if user.sources()+network.sources() == 0 {
		c.invalid(at, "%s must have at least one userdatasource or one networkdatasource set.", at)
	}
}

func (c *checker) seed(at *field.Path, s seed) {
	size := len(s.plain)
	if s.encoded != "" {
		decoded, err := base64.StdEncoding.DecodeString(s.encoded)
		if err != nil {
			c.invalid(at.Child(s.encodedField), "%s is not a valid base64 value.", at.Child(s.encodedField))
		}
		size = max(size, len(decoded))
	}
	if s.sources() > 1 {
		c.invalid(at, "%s must have only one %ssource set.", at, s.name)
	}
	if size > maxSeed {
		c.invalid(at, "%s %s exceeds %d byte limit. Should use %s for larger data.", at, s.name, maxSeed, s.secretField)
	}
}
