package vmctl

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Name names a virtual machine.
type Name struct{ Namespace, Name string }

func (n Name) key() types.NamespacedName { return types.NamespacedName(n) }

// kinds are the words that may stand before a machine's name.
var kinds = map[string]bool{
	"vm": true, "vms": true, "virtualmachine": true, "virtualmachines": true,
	"vmi": true, "vmis": true, "virtualmachineinstance": true, "virtualmachineinstances": true,
}

// ParseName reads NAME, NAME.NAMESPACE, vm/NAME, vm/NAME/NAMESPACE and vm/NAME.NAMESPACE: all forms that tools for virtual machines use. A name
// may have dots of its own only in the forms that give the namespace otherwise.
func ParseName(text, namespace string) (Name, error) {
	parts := strings.Split(text, "/")
	if kinds[parts[0]] && len(parts) > 1 {
		parts = parts[1:]
	}
	switch {
	case len(parts) > 2 || parts[0] == "" || len(parts) == 2 && parts[1] == "":
		return Name{}, fmt.Errorf("%q names no virtual machine; write NAME, vm/NAME or vm/NAME/NAMESPACE", text)
	case len(parts) == 2:
		return Name{Namespace: parts[1], Name: parts[0]}, nil
	}
	if i := strings.LastIndexByte(parts[0], '.'); i > 0 && i < len(parts[0])-1 {
		return Name{Namespace: parts[0][i+1:], Name: parts[0][:i]}, nil
	}
	return Name{Namespace: namespace, Name: parts[0]}, nil
}

// ParseLogin reads a name with USER@ before it.
func ParseLogin(text, namespace string) (user string, name Name, err error) {
	if before, after, ok := strings.Cut(text, "@"); ok {
		user, text = before, after
	}
	name, err = ParseName(text, namespace)
	return user, name, err
}
