package launcherpod

import (
	"path"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"

	"patchbay/internal/launcher/protocol"
)

// volumeSet is what volumes add to a pod.
type volumeSet struct {
	volumes     []corev1.Volume
	mounts      []corev1.VolumeMount
	devices     []corev1.VolumeDevice
	pullSecrets []corev1.LocalObjectReference
}

func podVolumes(r Request) volumeSet {
	var s volumeSet
	s.add(protocol.RunVolume, protocol.RunDir, corev1.VolumeSource{
		EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory},
	}, false)
	s.add(protocol.DiskVolume, protocol.DiskDir, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, false)
	if f := r.VMI.Spec.Domain.Firmware; f != nil && f.KernelBoot != nil && f.KernelBoot.Container != nil {
		c := f.KernelBoot.Container
		s.image(protocol.KernelBootVolume, c.Image, c.ImagePullPolicy, c.ImagePullSecret)
	}
	for _, v := range r.VMI.Spec.Volumes {
		s.guestVolume(r, v)
	}
	for _, c := range r.VMI.Spec.AccessCredentials {
		s.credential(c)
	}
	return s
}

func (s *volumeSet) guestVolume(r Request, v virtv1.Volume) {
	switch {
	case v.ContainerDisk != nil:
		s.image(v.Name, v.ContainerDisk.Image, v.ContainerDisk.ImagePullPolicy, v.ContainerDisk.ImagePullSecret)
	case v.Ephemeral != nil && v.Ephemeral.PersistentVolumeClaim != nil:
		s.claim(r, v.Name, v.Ephemeral.PersistentVolumeClaim.ClaimName, true)
	case ClaimName(v) != "":
		s.claim(r, v.Name, ClaimName(v), v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly)
	case v.HostDisk != nil:
		s.hostDisk(v.Name, *v.HostDisk)
	case v.CloudInitNoCloud != nil:
		s.cloudInit(v.Name, v.CloudInitNoCloud.UserDataSecretRef, v.CloudInitNoCloud.NetworkDataSecretRef)
	case v.CloudInitConfigDrive != nil:
		s.cloudInit(v.Name, v.CloudInitConfigDrive.UserDataSecretRef, v.CloudInitConfigDrive.NetworkDataSecretRef)
	default:
		if source, ok := projectedSource(v); ok {
			s.add(v.Name, path.Join(protocol.VolumesDir, v.Name), source, true)
		}
	}
}

// ClaimName is the persistent volume claim behind a volume; empty when there is none. A data volume's claim has its name.
func ClaimName(v virtv1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.DataVolume != nil:
		return v.DataVolume.Name
	case v.Ephemeral != nil && v.Ephemeral.PersistentVolumeClaim != nil:
		return v.Ephemeral.PersistentVolumeClaim.ClaimName
	}
	return ""
}

// projectedSource is the source of a volume whose files become a disk of the guest.
func projectedSource(v virtv1.Volume) (corev1.VolumeSource, bool) {
	switch {
	case v.ConfigMap != nil:
		return configMap(v.ConfigMap.LocalObjectReference, v.ConfigMap.Optional), true
	case v.Secret != nil:
		return secret(v.Secret.SecretName, v.Secret.Optional), true
	case v.Sysprep != nil && v.Sysprep.ConfigMap != nil:
		return configMap(*v.Sysprep.ConfigMap, nil), true
	case v.Sysprep != nil && v.Sysprep.Secret != nil:
		return secret(v.Sysprep.Secret.Name, nil), true
	case v.DownwardAPI != nil:
		return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: v.DownwardAPI.Fields}}, true
	case v.ServiceAccount != nil:
		return serviceAccountFiles(), true
	}
	return corev1.VolumeSource{}, false
}

func configMap(ref corev1.LocalObjectReference, optional *bool) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref, Optional: optional}}
}

func secret(name string, optional *bool) corev1.VolumeSource {
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, Optional: optional}}
}

// serviceAccountFiles are the files that a pod finds under /var/run/secrets/kubernetes.io/serviceaccount.
func serviceAccountFiles() corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"},
			Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
		}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
		}}},
	}}}
}

func (s *volumeSet) add(name, mountPath string, source corev1.VolumeSource, readOnly bool) {
	s.volumes = append(s.volumes, corev1.Volume{Name: name, VolumeSource: source})
	s.mounts = append(s.mounts, corev1.VolumeMount{Name: name, MountPath: mountPath, ReadOnly: readOnly})
}

func (s *volumeSet) image(name, reference string, policy corev1.PullPolicy, pullSecret string) {
	if policy == "" {
		policy = corev1.PullIfNotPresent
	}
	s.add(name, path.Join(protocol.VolumesDir, name), corev1.VolumeSource{
		Image: &corev1.ImageVolumeSource{Reference: reference, PullPolicy: policy},
	}, true)
	if pullSecret != "" {
		s.pullSecret(corev1.LocalObjectReference{Name: pullSecret})
	}
}

func (s *volumeSet) pullSecret(ref corev1.LocalObjectReference) {
	for _, known := range s.pullSecrets {
		if known == ref {
			return
		}
	}
	s.pullSecrets = append(s.pullSecrets, ref)
}

func (s *volumeSet) claim(r Request, name, claim string, readOnly bool) {
	target := path.Join(protocol.VolumesDir, name)
	source := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim, ReadOnly: readOnly}}
	if r.Claims[claim].Block {
		s.volumes = append(s.volumes, corev1.Volume{Name: name, VolumeSource: source})
		s.devices = append(s.devices, corev1.VolumeDevice{Name: name, DevicePath: target})
		return
	}
	s.add(name, target, source, readOnly)
}

// hostDisk mounts the directory of the disk, not the file: QEMU opens it by name, and a file to be created has none yet.
func (s *volumeSet) hostDisk(name string, disk virtv1.HostDisk) {
	kind := corev1.HostPathDirectory
	if disk.Type == virtv1.HostDiskExistsOrCreate {
		kind = corev1.HostPathDirectoryOrCreate
	}
	s.add(name, path.Join(protocol.VolumesDir, name), corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: path.Dir(disk.Path), Type: &kind},
	}, false)
}

func (s *volumeSet) cloudInit(name string, userData, networkData *corev1.LocalObjectReference) {
	if userData != nil {
		s.secretFiles(name+protocol.UserDataSuffix, userData.Name)
	}
	if networkData != nil {
		s.secretFiles(name+protocol.NetworkDataSuffix, networkData.Name)
	}
}

func (s *volumeSet) secretFiles(name, secretName string) {
	s.add(name, path.Join(protocol.VolumesDir, name), secret(secretName, nil), true)
}

// credential mounts the secret of an access credential, once however many credentials share it. The node's agent reads it
// there, so that it needs no right to read secrets.
func (s *volumeSet) credential(c virtv1.AccessCredential) {
	var source *virtv1.AccessCredentialSecretSource
	switch {
	case c.SSHPublicKey != nil:
		source = c.SSHPublicKey.Source.Secret
	case c.UserPassword != nil:
		source = c.UserPassword.Source.Secret
	}
	if source == nil {
		return
	}
	name := protocol.CredentialVolume(source.SecretName)
	for _, v := range s.volumes {
		if v.Name == name {
			return
		}
	}
	s.secretFiles(name, source.SecretName)
}
