package admission

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ovnv1 "patchbay/api/ovn/v1"
	"patchbay/internal/netconf"
	"patchbay/internal/podnetworks"
	"patchbay/internal/settings"
	"patchbay/internal/tenancy/attachment"
)

// l2bridge is the binding of NICs on a tenant's primary network (chapter9 9.3.3.2-C3).
const l2bridge = "l2bridge"

// TenantOf tells whether a namespace has, or is to have, a primary network of its own. Give it a reader that caches.
func TenantOf(reader client.Reader) func(namespace string) bool {
	return func(namespace string) bool {
		ns := &corev1.Namespace{}
		if err := reader.Get(context.Background(), client.ObjectKey{Name: namespace}, ns); err != nil {
			return false
		}
		_, labelled := ns.Labels[ovnv1.PrimaryNamespaceLabel]
		return labelled
	}
}

func (d Defaulter) tenant(namespace string) bool { return d.Tenant != nil && d.Tenant(namespace) }

// DefaultBindings binds the NICs that name no binding: those on the pod network of a namespace with a primary network of its
// own get the layer 2 bridge. Elsewhere the rules ask for a binding.
func (d Defaulter) DefaultBindings(namespace string, spec *virtv1.VirtualMachineInstanceSpec) {
	if !d.tenant(namespace) {
		return
	}
	for i := range spec.Domain.Devices.Interfaces {
		iface := &spec.Domain.Devices.Interfaces[i]
		onPod := slices.ContainsFunc(spec.Networks, func(n virtv1.Network) bool { return n.Name == iface.Name && n.Pod != nil })
		if onPod && iface.Binding == nil && iface.InterfaceBindingMethod == (virtv1.InterfaceBindingMethod{}) {
			iface.Binding = &virtv1.PluginBinding{Name: l2bridge}
		}
	}
}

// ValidateWishes are the rules about what a machine in a namespace with a primary network of its own asks of that network.
func ValidateWishes(annotations map[string]string, at *field.Path) Causes {
	var c Causes
	if err := attachment.UsersOwn(annotations); err != nil {
		c.invalid(at.Key(attachment.DefaultNetworkAnnotation), "%v", err)
	}
	if _, err := attachment.Wishes(annotations); err != nil {
		c.invalid(at.Key(attachment.AddressesAnnotation), "%v", err)
	}
	return c
}

// wishes are the causes for a machine's annotations; none outside of tenants' namespaces, where they reach CNI plugins untouched.
func (s *Server) wishes(namespace string, meta metav1.ObjectMeta, at *field.Path) Causes {
	if !s.defaulter().tenant(namespace) {
		return nil
	}
	return ValidateWishes(meta.Annotations, at)
}

// ValidateDefinition are the rules about a network attachment definition: of every one that its configuration can be read, of
// those of the overlay all that netconf knows, that they fit into the cluster, and that others of the same network agree.
func ValidateDefinition(d *nadv1.NetworkAttachmentDefinition, cluster settings.Settings, others []nadv1.NetworkAttachmentDefinition) Causes {
	var c Causes
	at := field.NewPath("spec", "config")
	if strings.TrimSpace(d.Spec.Config) == "" {
		return nil // a file on the nodes holds it
	}
	key := d.Namespace + "/" + d.Name
	n, err := netconf.Parse(key, d.Spec.Config)
	if errors.Is(err, netconf.ErrOther) {
		return nil
	}
	if err == nil && !n.IsDefault() {
		err = n.CheckCluster(cluster)
	}
	if err != nil {
		c.invalid(at, "%v", err)
		return c
	}
	if n.IsDefault() {
		return nil
	}
	for _, other := range others {
		known, err := netconf.Parse(other.Namespace+"/"+other.Name, other.Spec.Config)
		if err == nil && known.Name == n.Name && !known.Equal(n) && other.UID != d.UID {
			c.invalid(at, "%v", netconf.Mismatch(key, n.Name))
			return c
		}
		if err == nil && known.Name == n.Name && other.UID != d.UID {
			if c = validateSharing(d, &other, n); len(c) > 0 {
				return c
			}
		}
	}
	return nil
}

// validateSharing are the rules about a definition that means the same network as another one. Secondary networks are shared by
// their name.
func validateSharing(d, other *nadv1.NetworkAttachmentDefinition, n netconf.Network) Causes {
	var c Causes
	at := field.NewPath("spec", "config")
	switch made := netconf.MadeFor(d); {
	case made == "" && netconf.MadeFor(other) != "":
		c.invalid(at, "network name %q belongs to the user-defined network that definition %s/%s is made from; choose another name", n.Name, other.Namespace, other.Name)
	case made == "" && n.Role == podnetworks.Primary && other.Namespace != d.Namespace:
		c.invalid(at, "network name %q is the primary network of another namespace; choose another name, or have a ClusterUserDefinedNetwork "+
			"made that selects both namespaces", n.Name)
	}
	return c
}

// ValidateNetworkName keeps networks of the API to the definitions made from it: who could name them could join them.
func ValidateNetworkName(d *nadv1.NetworkAttachmentDefinition, exists func(namespace string) bool) Causes {
	var c Causes
	n, err := netconf.Parse(d.Namespace+"/"+d.Name, d.Spec.Config)
	if err != nil || n.IsDefault() {
		return nil
	}
	owner, _, composed := netconf.AskedBy(n.Name)
	whose := "namespace " + owner
	if owner == "" {
		whose = "the cluster"
	}
	if composed && (owner == "" || owner != d.Namespace && exists(owner)) {
		c.invalid(field.NewPath("spec", "config"), "network name %q is kept for the user-defined networks of %s; "+
			"choose a name without an underscore", n.Name, whose)
	}
	return c
}

func (s *Server) validateDefinition(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, d, err := objects[nadv1.NetworkAttachmentDefinition](r)
	if err != nil {
		return nil, err
	}
	if old != nil && old.Spec.Config == d.Spec.Config {
		return answer(nil), nil // labels and finalizers; nothing may hold that up
	}
	d.Namespace = r.Namespace
	var others nadv1.NetworkAttachmentDefinitionList
	if err := s.config.Reader.List(req.Context(), &others, client.UnsafeDisableDeepCopy); err != nil {
		return nil, err
	}
	causes := ValidateDefinition(d, s.config.Settings, others.Items)
	return answer(append(causes, ValidateNetworkName(d, s.namespaceExists)...)), nil
}

func (s *Server) namespaceExists(name string) bool {
	return s.config.Reader.Get(context.Background(), client.ObjectKey{Name: name}, &corev1.Namespace{}) == nil
}

func (s *Server) warnNetwork(_ *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	if r.Kind.Kind == "ClusterUserDefinedNetwork" {
		_, c, err := objects[ovnv1.ClusterUserDefinedNetwork](r)
		if err != nil {
			return nil, err
		}
		return answer(nil, WarnNetwork(netconf.OfCluster(c))(s.config.Settings)...), nil
	}
	_, u, err := objects[ovnv1.UserDefinedNetwork](r)
	if err != nil {
		return nil, err
	}
	u.Namespace = r.Namespace
	n, err := netconf.OfNamespace(u)
	warnings := WarnNetwork(n, err)(s.config.Settings)
	if n.Role == podnetworks.Primary && !s.defaulter().tenant(r.Namespace) {
		warnings = append(warnings, fmt.Sprintf("namespace %s was made without the label %s, so this network will not be created; "+
			"make a new namespace with the label", r.Namespace, ovnv1.PrimaryNamespaceLabel))
	}
	return answer(nil, warnings...), nil
}

// WarnNetwork lists why a network that somebody asks for will not be made. Its conditions say the same.
func WarnNetwork(n netconf.Network, err error) func(settings.Settings) []string {
	return func(cluster settings.Settings) []string {
		if err == nil {
			err = n.CheckCluster(cluster)
		}
		if err == nil {
			return nil
		}
		return []string{"this network will not be created: " + strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
}
