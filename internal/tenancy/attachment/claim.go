package attachment

import (
	"fmt"
	"regexp"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
)

// What claims carry.
const (
	// ClaimFinalizer holds a claim, and with it the addresses, until its machine and the machine's guest are gone.
	ClaimFinalizer = "kubevirt.io/persistent-ipam"
	// ClaimLabel names the claim's machine.
	ClaimLabel = "kubevirt.io/vm"
)

// longestName is that of objects.
const longestName = 253

// subdomain finds what of a text may be in an object's name.
var subdomain = regexp.MustCompile(`[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*`)

// ClaimName is the name of the claim for one network of a machine.
func ClaimName(machine, network string) string {
	pieces := subdomain.FindAllString(strings.ToLower(machine+"."+network), -1)
	name := strings.Join(pieces, ".")
	return strings.TrimRight(name[:min(len(name), longestName)], "-.")
}

// Claim is the claim that a NIC's addresses are kept by. It belongs to the machine, or to the instance when it has none.
func Claim(vmi *virtv1.VirtualMachineInstance, a Attachment) *ipamclaimsv1alpha1.IPAMClaim {
	return &ipamclaimsv1alpha1.IPAMClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       vmi.Namespace,
			Name:            ClaimName(vmi.Name, a.Name),
			Labels:          map[string]string{ClaimLabel: vmi.Name},
			Finalizers:      []string{ClaimFinalizer},
			OwnerReferences: []metav1.OwnerReference{owner(vmi)},
		},
		Spec: ipamclaimsv1alpha1.IPAMClaimSpec{Network: a.Network.Name},
	}
}

func owner(vmi *virtv1.VirtualMachineInstance) metav1.OwnerReference {
	if vm := metav1.GetControllerOf(vmi); vm != nil && vm.Kind == virtv1.VirtualMachineGroupVersionKind.Kind {
		return *vm.DeepCopy()
	}
	return *metav1.NewControllerRef(vmi, virtv1.VirtualMachineInstanceGroupVersionKind)
}

// Owned tells whether an existing claim is the one that a NIC wants. One of the same name that belongs to somebody else is an
// error: it is going, with a machine that was called the same, or was made by hand.
func Owned(existing, wanted *ipamclaimsv1alpha1.IPAMClaim) error {
	refs := existing.OwnerReferences
	if len(refs) != 1 || refs[0].UID != wanted.OwnerReferences[0].UID {
		return fmt.Errorf("failed since it found an existing IPAMClaim for %q", existing.Name)
	}
	return nil
}
