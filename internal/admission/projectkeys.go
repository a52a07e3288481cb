package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ProjectKeysAnnotation of a namespace names the secret whose SSH keys go to every virtual machine that is made there (chapter9 SSH.1-C5).
const ProjectKeysAnnotation = "patchbay.io/ssh-keys"

// seedVolume is the volume that carries the keys to machines that have no cloud-init volume.
const seedVolume = "cloudinitdisk"

// ProjectKeysOf tells the secret of a namespace; empty when it has none. Give it a reader that caches.
func ProjectKeysOf(reader client.Reader) func(namespace string) string {
	return func(namespace string) string {
		ns := &corev1.Namespace{}
		if err := reader.Get(context.Background(), client.ObjectKey{Name: namespace}, ns); err != nil {
			return ""
		}
		return ns.Annotations[ProjectKeysAnnotation]
	}
}

// projectKeys gives a new machine its namespace's keys, in the way that its own cloud-init volume works. A machine that names the secret
// itself knows better.
func (d Defaulter) projectKeys(namespace string, spec *virtv1.VirtualMachineInstanceSpec) {
	if d.ProjectKeys == nil {
		return
	}
	secret := d.ProjectKeys(namespace)
	if secret == "" || slices.ContainsFunc(spec.AccessCredentials, func(c virtv1.AccessCredential) bool {
		return c.SSHPublicKey != nil && c.SSHPublicKey.Source.Secret != nil && c.SSHPublicKey.Source.Secret.SecretName == secret
	}) {
		return
	}
	key := &virtv1.SSHPublicKeyAccessCredential{
		Source: virtv1.SSHPublicKeyAccessCredentialSource{Secret: &virtv1.AccessCredentialSecretSource{SecretName: secret}},
	}
	if slices.ContainsFunc(spec.Volumes, func(v virtv1.Volume) bool { return v.CloudInitConfigDrive != nil }) {
		key.PropagationMethod.ConfigDrive = &virtv1.ConfigDriveSSHPublicKeyAccessCredentialPropagation{}
	} else {
		key.PropagationMethod.NoCloud = &virtv1.NoCloudSSHPublicKeyAccessCredentialPropagation{}
		addSeed(spec)
	}
	spec.AccessCredentials = append(spec.AccessCredentials, virtv1.AccessCredential{SSHPublicKey: key})
}

// addSeed gives a machine a cloud-init volume, unless it has one. Its disk follows from it.
func addSeed(spec *virtv1.VirtualMachineInstanceSpec) {
	if slices.ContainsFunc(spec.Volumes, func(v virtv1.Volume) bool { return v.CloudInitNoCloud != nil || v.Name == seedVolume }) {
		return
	}
	spec.Volumes = append(spec.Volumes, virtv1.Volume{Name: seedVolume, VolumeSource: virtv1.VolumeSource{
		CloudInitNoCloud: &virtv1.CloudInitNoCloudSource{UserData: "#cloud-config\n"},
	}})
	disk := virtv1.Disk{Name: seedVolume}
	disk.Disk = &virtv1.DiskTarget{Bus: virtv1.DiskBusVirtio}
	spec.Domain.Devices.Disks = append(spec.Domain.Devices.Disks, disk)
}
