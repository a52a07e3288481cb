package admission

import (
	"strings"
	"testing"
)

// disk makes a spec of one disk and one volume.
func disk(fields, source string) string {
	return "domain: {devices: {disks: [{name: d, " + fields + "}]}}\nvolumes: [{name: d, " + source + "}]\n"
}

const container = "containerDisk: {image: x}"

func TestBootOrderRules(t *testing.T) {
	checkRules(t, []rule{
		{name: "accepted", spec: nic("masquerade: {}, bootOrder: 1")},
		{name: "interface below 1 names the spec", spec: nic("masquerade: {}, bootOrder: 0"),
			want: []string{"FieldValueInvalid spec[0].bootOrder: spec[0] must have a boot order > 0, if supplied"}},
		{name: "disk below 1", spec: disk("bootOrder: 0", container), want: []string{
			"FieldValueInvalid spec.domain.devices.disks[0].bootOrder: spec.domain.devices.disks[0] must have a boot order > 0, if supplied"}},
		{name: "interfaces are counted before disks", spec: `
domain: {devices: {interfaces: [{name: a, masquerade: {}, bootOrder: 2}], disks: [{name: d, bootOrder: 2}]}}
networks: [{name: a, pod: {}}]
volumes: [{name: d, containerDisk: {image: x}}]`, want: []string{
			"FieldValueInvalid spec.domain.devices.disks[0].bootOrder: Boot order for spec.domain.devices.disks[0].bootOrder already set for a different device."}},
	})
}

func TestProbeRules(t *testing.T) {
	checkRules(t, []rule{
		{name: "accepted", spec: nic("masquerade: {}") + "readinessProbe: {tcpSocket: {port: 80}}"},
		{name: "agent needs no pod network", spec: secondary("bridge: {}") + "livenessProbe: {guestAgentPing: {}}"},
		{name: "two handlers", spec: nic("masquerade: {}") + "readinessProbe: {tcpSocket: {port: 80}, httpGet: {port: 80}}",
			want: []string{"FieldValueInvalid spec.readinessProbe: spec.readinessProbe must have exactly one probe type set"}},
		{name: "no handler", spec: nic("masquerade: {}") + "livenessProbe: {periodSeconds: 3}", want: []string{
			"FieldValueRequired spec.livenessProbe: either spec.livenessProbe.tcpSocket, spec.livenessProbe.exec or spec.livenessProbe.httpGet must be set if a spec.livenessProbe is specified"}},
		{name: "no pod network", spec: secondary("bridge: {}") + "readinessProbe: {tcpSocket: {port: 80}}\nlivenessProbe: {httpGet: {port: 80}}", want: []string{
			"FieldValueInvalid spec.readinessProbe.tcpSocket: spec.readinessProbe.tcpSocket is only allowed if the Pod Network is attached",
			"FieldValueInvalid spec.livenessProbe.httpGet: spec.livenessProbe.httpGet is only allowed if the Pod Network is attached"}},
	})
}

func TestGuestRules(t *testing.T) {
	const label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
	checkRules(t, []rule{
		{name: "hostname", spec: "domain: {devices: {}}\nhostname: a_b", want: []string{
			"FieldValueInvalid spec.hostname: spec.hostname does not conform to the kubernetes DNS_LABEL rules : " + label}},
		{name: "hostname and subdomain", spec: "domain: {devices: {}}\nhostname: web\nsubdomain: shop.example"},
		{name: "subdomain", spec: "domain: {devices: {}}\nsubdomain: a..b", want: []string{
			"FieldValueInvalid spec.subdomain: spec.subdomain does not conform to the kubernetes DNS_SUBDOMAIN rules : a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"}},
		{name: "sockets", spec: "domain: {devices: {}, cpu: {sockets: 4, maxSockets: 2}}", want: []string{
			"FieldValueInvalid spec.domain.cpu.sockets: Number of sockets in CPU topology is greater than the maximum sockets allowed"}},
		{name: "eviction strategy", spec: "domain: {devices: {}}\nevictionStrategy: Never", want: []string{
			"FieldValueInvalid spec.evictionStrategy: spec.evictionStrategy is set with an unrecognized option: Never"}},
		{name: "eviction strategies", spec: "domain: {devices: {}}\nevictionStrategy: External"},
	})
}

func TestDNSRules(t *testing.T) {
	dns := func(policy, config string) string {
		return "domain: {devices: {}}\ndnsPolicy: " + policy + "\n" + config
	}
	long := "dnsConfig: {nameservers: [10.0.0.1], searches: [" + strings.Repeat("a", 130) + ", " + strings.Repeat("b", 130) + "]}"
	checkRules(t, []rule{
		{name: "accepted", spec: dns("None", "dnsConfig: {nameservers: [10.0.0.1, 'fd00::1'], searches: [x], options: [{name: ndots, value: '5'}]}")},
		{name: "policy", spec: dns("Fake", ""), want: []string{
			"FieldValueNotSupported spec.dnsPolicy: DNSPolicy: Fake is not supported, valid values: [ClusterFirstWithHostNet ClusterFirst Default None ]"}},
		{name: "None without config", spec: dns("None", ""), want: []string{
			"FieldValueRequired spec.dnsConfig: must provide `dnsConfig` when `dnsPolicy` is None"}},
		{name: "None without nameserver", spec: dns("None", "dnsConfig: {searches: [x]}"), want: []string{
			"FieldValueRequired spec.dnsConfig.nameservers: must provide at least one DNS nameserver when `dnsPolicy` is None"}},
		{name: "nameservers", spec: dns("ClusterFirst", "dnsConfig: {nameservers: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4]}"), want: []string{
			"FieldValueInvalid spec.dnsConfig.nameservers: must not have more than 3 nameservers: [10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4]"}},
		{name: "nameserver", spec: dns("ClusterFirst", "dnsConfig: {nameservers: [10.0.0.x]}"), want: []string{
			"FieldValueInvalid spec.dnsConfig.nameservers: must be valid IP address: 10.0.0.x"}},
		{name: "search paths", spec: dns("ClusterFirst", "dnsConfig: {searches: [a, b, c, d, e, f, g]}"), want: []string{
			"FieldValueInvalid spec.dnsConfig.searches: must not have more than 6 search paths"}},
		{name: "search list", spec: dns("None", long), want: []string{
			"FieldValueInvalid spec.dnsConfig.searches: must not have more than 256 characters (including spaces) in the search list"}},
		{name: "option", spec: dns("ClusterFirst", "dnsConfig: {options: [{value: x}]}"), want: []string{
			"FieldValueRequired spec.dnsConfig.options: Option.Name must not be empty"}},
	})
}

func TestDiskRules(t *testing.T) {
	const at = "spec.domain.devices.disks[0]"
	checkRules(t, []rule{
		{name: "accepted", spec: disk("disk: {bus: virtio}, serial: a-1", container)},
		{name: "volume without disk", spec: "domain: {devices: {}}\nvolumes: [{name: d, containerDisk: {image: x}}]"},
		{name: "disk without volume", spec: "domain: {devices: {disks: [{name: d}]}}",
			want: []string{"FieldValueInvalid " + at + ".name: " + at + ".name 'd' not found."}},
		{name: "equal names", spec: "domain: {devices: {disks: [{name: d}, {name: d}]}}\nvolumes: [{name: d, containerDisk: {image: x}}]", want: []string{
			"FieldValueInvalid spec.domain.devices.disks[1].name: spec.domain.devices.disks[1] and " + at + " must not have the same Name."}},
		{name: "two targets", spec: disk("disk: {}, cdrom: {}", container),
			want: []string{"FieldValueInvalid " + at + ": " + at + " can only have a single target type defined"}},
		{name: "bus", spec: disk("disk: {bus: ide}", container), want: []string{
			"FieldValueInvalid " + at + ".disk.bus: " + at + ".disk.bus is set with an unrecognized bus ide, must be one of: [virtio scsi sata usb]"}},
		{name: "cdrom bus", spec: disk("cdrom: {bus: virtio}", container),
			want: []string{"FieldValueInvalid " + at + ".cdrom.bus: Bus type virtio is invalid for CD-ROM device"}},
		{name: "serial", spec: disk("serial: a/b", container), want: []string{
			"FieldValueInvalid " + at + ".serial: " + at + ".serial must be made up of the following characters [A-Za-z0-9_.+-], if specified"}},
		{name: "long serial", spec: disk("serial: "+strings.Repeat("x", 257), container), want: []string{
			"FieldValueInvalid " + at + ".serial: " + at + ".serial must be less than or equal to 256 in length, if specified"}},
		{name: "lun", spec: disk("lun: {}", container), want: []string{
			"FieldValueInvalid " + at + ".lun: " + at + ".lun can only be mapped to a DataVolume or PersistentVolumeClaim volume."}},
		{name: "lun of a claim", spec: disk("lun: {}", "persistentVolumeClaim: {claimName: x}")},
	})
}

func TestVolumeRules(t *testing.T) {
	const at = "spec.volumes[0]"
	volume := func(source string) string { return "domain: {devices: {}}\nvolumes: [{name: v, " + source + "}]\n" }
	big := strings.Repeat("x", 2049)
	checkRules(t, []rule{
		{name: "equal names", spec: "domain: {devices: {}}\nvolumes: [{name: v, emptyDisk: {capacity: 1Gi}}, {name: v, emptyDisk: {capacity: 1Gi}}]",
			want: []string{"FieldValueInvalid spec.volumes[1].name: spec.volumes[1] and " + at + " must not have the same Name."}},
		{name: "no source", spec: "domain: {devices: {}}\nvolumes: [{name: v}]",
			want: []string{"FieldValueInvalid " + at + ": " + at + " must have exactly one source type set"}},
		{name: "two sources", spec: volume(container + ", emptyDisk: {capacity: 1Gi}"),
			want: []string{"FieldValueInvalid " + at + ": " + at + " must have exactly one source type set"}},
		{name: "service accounts", spec: "domain: {devices: {}}\nvolumes: [{name: v, serviceAccount: {}}, {name: w, serviceAccount: {}}]",
			want: []string{"FieldValueInvalid spec.volumes: spec.volumes must have max one serviceAccount volume set"}},
		{name: "host disk", spec: volume("hostDisk: {path: /x/disk.img, type: DiskOrCreate, capacity: 1Gi}")},
		{name: "host disk path", spec: volume("hostDisk: {path: '', type: Disk}"),
			want: []string{"FieldValueRequired " + at + ".hostDisk.path: " + at + ".hostDisk.path is required for hostDisk volume"}},
		{name: "host disk type", spec: volume("hostDisk: {path: /x, type: File}"), want: []string{
			"FieldValueInvalid " + at + ".hostDisk.type: " + at + ".hostDisk.type has invalid value 'File', allowed are 'Disk' or 'DiskOrCreate'"}},
		{name: "host disk capacity", spec: volume("hostDisk: {path: /x, type: Disk, capacity: 1Gi}"), want: []string{
			"FieldValueInvalid " + at + ".hostDisk.capacity: " + at + ".hostDisk.capacity is allowed to pass only with " + at + ".hostDisk.type equal to 'DiskOrCreate'"}},
		{name: "cloud-init", spec: volume("cloudInitNoCloud: {userData: '#cloud-config', networkDataBase64: eA==}")},
		{name: "cloud-init of exactly the limit", spec: volume("cloudInitNoCloud: {userData: " + big[1:] + "}")},
		{name: "cloud-init secret", spec: volume("cloudInitConfigDrive: {secretRef: {name: x}, networkDataSecretRef: {name: z}}")},
		{name: "two user data", spec: volume("cloudInitNoCloud: {userData: x, secretRef: {name: x}}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitNoCloud: " + at + ".cloudInitNoCloud must have only one userdatasource set."}},
		{name: "two network data", spec: volume("cloudInitConfigDrive: {networkData: x, networkDataBase64: eA==}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitConfigDrive: " + at + ".cloudInitConfigDrive must have only one networkdatasource set."}},
		{name: "no data", spec: volume("cloudInitNoCloud: {secretRef: {name: ''}}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitNoCloud: " + at + ".cloudInitNoCloud must have at least one userdatasource or one networkdatasource set."}},
		{name: "bad base64", spec: volume("cloudInitNoCloud: {userDataBase64: '???'}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitNoCloud.userDataBase64: " + at + ".cloudInitNoCloud.userDataBase64 is not a valid base64 value."}},
		{name: "big user data", spec: volume("cloudInitNoCloud: {userData: " + big + "}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitNoCloud: " + at + ".cloudInitNoCloud userdata exceeds 2048 byte limit. Should use UserDataSecretRef for larger data."}},
		{name: "big network data", spec: volume("cloudInitConfigDrive: {networkData: " + big + "}"), want: []string{
			"FieldValueInvalid " + at + ".cloudInitConfigDrive: " + at + ".cloudInitConfigDrive networkdata exceeds 2048 byte limit. Should use NetworkDataSecretRef for larger data."}},
	})
}

func TestAccessCredentialRules(t *testing.T) {
	const at = "spec.accessCredentials[0]"
	credential := func(fields, volumes string) string {
		return "domain: {devices: {}}\naccessCredentials: [{" + fields + "}]\nvolumes: [" + volumes + "]\n"
	}
	const secret, noCloud = "source: {secret: {secretName: s}}", "{name: v, cloudInitNoCloud: {userData: x}}"
	checkRules(t, []rule{
		{name: "noCloud", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {noCloud: {}}}", noCloud)},
		{name: "agent", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {qemuGuestAgent: {users: [root]}}}", "")},
		{name: "password", spec: credential("userPassword: {"+secret+", propagationMethod: {qemuGuestAgent: {}}}", "")},
		{name: "noCloud without volume", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {noCloud: {}}}", ""), want: []string{
			"FieldValueInvalid " + at + ".sshPublicKey.propagationMethod: " + at + " requires a noCloud volume to exist when the noCloud propagationMethod is in use."}},
		{name: "configDrive without volume", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {configDrive: {}}}", noCloud), want: []string{
			"FieldValueInvalid " + at + ".sshPublicKey.propagationMethod: " + at + " requires a configDrive volume to exist when the configDrive propagationMethod is in use."}},
		{name: "no users", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {qemuGuestAgent: {users: []}}}", ""), want: []string{
			"FieldValueInvalid " + at + ".sshPublicKey.propagationMethod.qemuGuestAgent.users: " + at + " requires at least one user to be present in the users list"}},
		{name: "no source", spec: credential("sshPublicKey: {source: {}, propagationMethod: {noCloud: {}}}", noCloud),
			want: []string{"FieldValueInvalid " + at + ".sshPublicKey.source: " + at + " must have exactly one source set"}},
		{name: "no method", spec: credential("sshPublicKey: {"+secret+", propagationMethod: {}}", noCloud),
			want: []string{"FieldValueInvalid " + at + ".sshPublicKey.propagationMethod: " + at + " must have exactly one propagationMethod set"}},
		{name: "password without method", spec: credential("userPassword: {"+secret+", propagationMethod: {}}", ""),
			want: []string{"FieldValueInvalid " + at + ".userPassword.propagationMethod: " + at + " must have exactly one propagationMethod set"}},
		{name: "no type", spec: "domain: {devices: {}}\naccessCredentials: [{}]",
			want: []string{"FieldValueInvalid " + at + ": " + at + " must have exactly one access credential type set"}},
	})
}
