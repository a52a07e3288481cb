// Package attachment says which networks of the overlay the NICs of a virtual machine are on, and what the machine's pod asks
// of them: claims that keep addresses, wished addresses, a wished MAC. Look reads the facts; what follows from them is pure. The
// package must not give out an address.
package attachment

import (
	"context"
	"fmt"
	"strings"

	ipamclaimsv1alpha1 "github.com/k8snetworkplumbingwg/ipamclaims/pkg/crd/ipamclaims/v1alpha1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
)

// Facts are what is known of the networks around one machine.
type Facts struct {
	// Tenant says that the machine's namespace has, or is to have, a primary network of its own.
	Tenant bool
	// Definitions are the networks of the overlay by the "namespace/name" of their definitions: all of the machine's namespace,
	// and those elsewhere that the machine names.
	Definitions map[string]netconf.Network
	// Claims are the machine's claims by name.
	Claims map[string]*ipamclaimsv1alpha1.IPAMClaim
}

// Look reads the facts about an instance.
func Look(ctx context.Context, r client.Reader, vmi *virtv1.VirtualMachineInstance) (Facts, error) {
	f := Facts{Definitions: map[string]netconf.Network{}, Claims: map[string]*ipamclaimsv1alpha1.IPAMClaim{}}
	ns := &corev1.Namespace{}
	if err := r.Get(ctx, client.ObjectKey{Name: vmi.Namespace}, ns); client.IgnoreNotFound(err) != nil {
		return f, fmt.Errorf("read namespace %s: %w", vmi.Namespace, err)
	}
	_, f.Tenant = ns.Labels[ovnv1.PrimaryNamespaceLabel]
	if err := f.lookAtDefinitions(ctx, r, vmi); err != nil {
		return f, err
	}
	for _, n := range vmi.Spec.Networks {
		claim := &ipamclaimsv1alpha1.IPAMClaim{}
		key := client.ObjectKey{Namespace: vmi.Namespace, Name: ClaimName(vmi.Name, n.Name)}
		switch err := r.Get(ctx, key, claim); {
		case err == nil:
			f.Claims[claim.Name] = claim
		case client.IgnoreNotFound(err) != nil:
			return f, fmt.Errorf("read IPAMClaim %s: %w", key, err)
		}
	}
	return f, nil
}

func (f Facts) lookAtDefinitions(ctx context.Context, r client.Reader, vmi *virtv1.VirtualMachineInstance) error {
	var here nadv1.NetworkAttachmentDefinitionList
	if err := r.List(ctx, &here, client.InNamespace(vmi.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the network attachment definitions of namespace %s: %w", vmi.Namespace, err)
	}
	for i := range here.Items {
		f.add(&here.Items[i])
	}
	for _, key := range Definitions(vmi) {
		if namespace, name, _ := strings.Cut(key, "/"); namespace != vmi.Namespace {
			d := &nadv1.NetworkAttachmentDefinition{}
			if err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, d); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("read network attachment definition %s: %w", key, err)
			}
			f.add(d)
		}
	}
	return nil
}

// add takes a definition up if it is one of the overlay; what is wrong with others is told elsewhere.
func (f Facts) add(d *nadv1.NetworkAttachmentDefinition) {
	key := d.Namespace + "/" + d.Name
	if n, err := netconf.Parse(key, d.Spec.Config); err == nil && !n.IsDefault() {
		f.Definitions[key] = n
	}
}

// definition is the "namespace/name" that a network of a machine names.
func definition(vmi *virtv1.VirtualMachineInstance, n virtv1.Network) (key string, named bool) {
	if n.Multus == nil {
		return "", false
	}
	if strings.Contains(n.Multus.NetworkName, "/") {
		return n.Multus.NetworkName, true
	}
	return vmi.Namespace + "/" + n.Multus.NetworkName, true
}

// Definitions are the "namespace/name" of the definitions that a machine names.
func Definitions(vmi *virtv1.VirtualMachineInstance) []string {
	var keys []string
	for _, n := range vmi.Spec.Networks {
		if key, named := definition(vmi, n); named {
			keys = append(keys, key)
		}
	}
	return keys
}

// Attachment is one NIC of a machine on a network of the overlay.
type Attachment struct {
	Name    string // of the NIC, and of the network in the machine's specification
	Network netconf.Network
	MAC     string // wished; empty: any
}

// Primary tells whether the network takes the place of the cluster's own.
func (a Attachment) Primary() bool { return a.Network.Role == podnetworks.Primary }

// Attachments are the machine's NICs on the overlay's networks, in the order of its specification. It is an error when the
// machine wants a primary network and there is not exactly one.
func (f Facts) Attachments(vmi *virtv1.VirtualMachineInstance) ([]Attachment, error) {
	macs := map[string]string{}
	for _, nic := range vmi.Spec.Domain.Devices.Interfaces {
		if nic.State != virtv1.InterfaceStateAbsent {
			macs[nic.Name] = nic.MacAddress
		}
	}
	var list []Attachment
	for _, n := range vmi.Spec.Networks {
		mac, present := macs[n.Name]
		if !present {
			continue
		}
		network, on, err := f.network(vmi, n)
		if err != nil {
			return nil, err
		}
		if on {
			list = append(list, Attachment{Name: n.Name, Network: network, MAC: mac})
		}
	}
	return list, nil
}

// network is the overlay's network behind one of the machine's; on is false when it is the cluster's own or another plugin's.
func (f Facts) network(vmi *virtv1.VirtualMachineInstance, n virtv1.Network) (network netconf.Network, on bool, err error) {
	if n.Pod != nil {
		if !f.Tenant {
			return netconf.Network{}, false, nil
		}
		network, err = f.primary(vmi.Namespace)
		return network, err == nil, err
	}
	key, _ := definition(vmi, n)
	network, on = f.Definitions[key]
	return network, on, nil
}

func (f Facts) primary(namespace string) (netconf.Network, error) {
	var found []string
	for key, n := range f.Definitions {
		if own, _, _ := strings.Cut(key, "/"); own == namespace && n.Role == podnetworks.Primary {
			found = append(found, key)
		}
	}
	switch len(found) {
	case 1:
		return f.Definitions[found[0]], nil
	case 0:
		return netconf.Network{}, fmt.Errorf("namespace %s has the label %s and no primary network yet; create a UserDefinedNetwork in it, "+
			"or a ClusterUserDefinedNetwork that selects it", namespace, ovnv1.PrimaryNamespaceLabel)
	}
	return netconf.Network{}, fmt.Errorf("namespace %s has %d primary networks; leave one", namespace, len(found))
}
