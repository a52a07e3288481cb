package launcherpod

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"

	virtv1 "kubevirt.io/api/core/v1"
)

const (
	namePrefix   = "virt-launcher-"
	suffixLength = 5
	maxNameBase  = 63 - suffixLength // as the API server cuts a generateName
	// suffixAlphabet has no vowels, and no digits that look like one, as the API server's generated names have.
	suffixAlphabet = "bcdfghjklmnpqrstvwxz2456789"
)

// Name is the name of the pod that a machine starts in or, with a migration, moves to. It looks generated but follows from the
// UID that the pod is made for: the API server refuses a second pod for the same start, however stale our knowledge is.
func Name(vmi *virtv1.VirtualMachineInstance, m *Migration) string {
	seed := string(vmi.UID)
	if m != nil {
		seed = string(m.UID)
	}
	base := generateName(vmi)
	if len(base) > maxNameBase {
		base = base[:maxNameBase]
	}
	sum := sha256.Sum256([]byte(seed))
	suffix := make([]byte, suffixLength)
	for i := range suffix {
		suffix[i] = suffixAlphabet[int(sum[i])%len(suffixAlphabet)]
	}
	return base + string(suffix)
}

func generateName(vmi *virtv1.VirtualMachineInstance) string { return namePrefix + vmi.Name + "-" }

// ID is the value of the label vmi.kubevirt.io/id, which Services select a machine's pods by.
func ID(vmiName string) string {
	if len(vmiName) <= 63 {
		return vmiName
	}
	sum := sha1.Sum([]byte(vmiName))
	return vmiName[:54] + "-" + hex.EncodeToString(sum[:])[:8]
}
