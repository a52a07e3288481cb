package admission

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	virtv1 "kubevirt.io/api/core/v1"
)

func TestProjectKeys(t *testing.T) {
	const (
		seeded  = `{volumes: [{name: ci, cloudInitNoCloud: {userData: x}}], domain: {devices: {}}}`
		driven  = `{volumes: [{name: ci, cloudInitConfigDrive: {userData: x}}], domain: {devices: {}}}`
		knowing = `{volumes: [{name: ci, cloudInitNoCloud: {userData: x}}], domain: {devices: {}},
  accessCredentials: [{sshPublicKey: {source: {secret: {secretName: team}}, propagationMethod: {qemuGuestAgent: {users: [me]}}}}]}`
	)
	for name, c := range map[string]struct{ secret, spec, want string }{
		"none":                 {"", seeded, seeded},
		"noCloud":              {"team", seeded, `{volumes: [{name: ci, cloudInitNoCloud: {userData: x}}], domain: {devices: {}}, accessCredentials: [{sshPublicKey: {source: {secret: {secretName: team}}, propagationMethod: {noCloud: {}}}}]}`},
		"configDrive":          {"team", driven, `{volumes: [{name: ci, cloudInitConfigDrive: {userData: x}}], domain: {devices: {}}, accessCredentials: [{sshPublicKey: {source: {secret: {secretName: team}}, propagationMethod: {configDrive: {}}}}]}`},
		"the machine knows it": {"team", knowing, knowing},
		"without a cloud-init": {"team", `{domain: {devices: {}}}`, `{volumes: [{name: cloudinitdisk, cloudInitNoCloud: {userData: "#cloud-config\n"}}], domain: {devices: {disks: [{name: cloudinitdisk, disk: {bus: virtio}}]}}, accessCredentials: [{sshPublicKey: {source: {secret: {secretName: team}}, propagationMethod: {noCloud: {}}}}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			spec := parse[virtv1.VirtualMachineInstanceSpec](t, c.spec)
			d := Defaulter{ProjectKeys: func(namespace string) string {
				if namespace != "shop" {
					t.Errorf("namespace %q", namespace)
				}
				return c.secret
			}}
			d.projectKeys("shop", spec)
			if diff := cmp.Diff(parse[virtv1.VirtualMachineInstanceSpec](t, c.want), spec); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
