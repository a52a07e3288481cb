package admission

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
)

// accessCredentials are the rules about SSH keys and passwords that the guest is given.
func (c *checker) accessCredentials() {
	for i, credential := range c.spec.AccessCredentials {
		at := c.root.Child("accessCredentials").Index(i)
		if count(credential.SSHPublicKey != nil, credential.UserPassword != nil) != 1 {
			c.invalid(at, "%s must have exactly one access credential type set", at)
		}
		if key := credential.SSHPublicKey; key != nil {
			c.sshKey(at, key)
		}
		if password := credential.UserPassword; password != nil {
			own := at.Child("userPassword")
			c.exactlyOne(at, own, "source", count(password.Source.Secret != nil))
			c.exactlyOne(at, own, "propagationMethod", count(password.PropagationMethod.QemuGuestAgent != nil))
		}
	}
}

func (c *checker) sshKey(at *field.Path, key *virtv1.SSHPublicKeyAccessCredential) {
	method := key.PropagationMethod
	own := at.Child("sshPublicKey")
	if method.NoCloud != nil && !c.anyVolume(func(v virtv1.Volume) bool { return v.CloudInitNoCloud != nil }) {
		c.invalid(own.Child("propagationMethod"),
			"%s requires a noCloud volume to exist when the noCloud propagationMethod is in use.", at)
	}
	if method.ConfigDrive != nil && !c.anyVolume(func(v virtv1.Volume) bool { return v.CloudInitConfigDrive != nil }) {
		c.invalid(own.Child("propagationMethod"),
			"%s requires a configDrive volume to exist when the configDrive propagationMethod is in use.", at)
	}
	if agent := method.QemuGuestAgent; agent != nil && len(agent.Users) == 0 {
		c.invalid(own.Child("propagationMethod", "qemuGuestAgent", "users"),
			"%s requires at least one user to be present in the users list", at)
	}
	c.exactlyOne(at, own, "source", count(key.Source.Secret != nil))
	c.exactlyOne(at, own, "propagationMethod", count(method.NoCloud != nil, method.ConfigDrive != nil, method.QemuGuestAgent != nil))
}

func (c *checker) exactlyOne(at, own *field.Path, what string, have int) {
	if have != 1 {
		c.invalid(own.Child(what), "%s must have exactly one %s set", at, what)
	}
}

func (c *checker) anyVolume(match func(virtv1.Volume) bool) bool {
	return slices.ContainsFunc(c.spec.Volumes, match)
}
