package admission_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/admission"
)

// namespace makes one; with the label of a primary network when it is a tenant's.
func namespace(ctx context.Context, t *testing.T, admin client.Client, tenant bool) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "hooks-"}}
	if tenant {
		ns.Labels = map[string]string{"k8s.ovn.org/primary-user-defined-network": ""}
	}
	if err := admin.Create(ctx, ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func TestBindingOnTenantsNetworks(t *testing.T) {
	ctx, admin, _ := installed(t)
	tenant, plain := namespace(ctx, t, admin, true), namespace(ctx, t, admin, false)
	const unbound = "{domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: a}]}}, networks: [{name: a, pod: {}}]}"
	const silent = "{domain: {memory: {guest: 64Mi}, devices: {}}}"
	const asked = "{domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: a, masquerade: {}}]}}, networks: [{name: a, pod: {}}]}"

	machine := vm("unbound", unbound, "Halted")
	machine.Namespace = tenant
	if err := admin.Create(ctx, machine); err != nil {
		t.Fatal(err)
	}
	if got := bindingOf(machine.Spec.Template.Spec); got != "l2bridge" {
		t.Errorf("a VM's interface without a binding got %s", got)
	}
	machine.Spec.Template.Spec.Domain.Devices.Interfaces[0].Binding = nil
	if err := admin.Update(ctx, machine); err != nil || bindingOf(machine.Spec.Template.Spec) != "l2bridge" {
		t.Errorf("after an update without it: %v, %s", err, bindingOf(machine.Spec.Template.Spec))
	}
	elsewhere := vm("unbound", unbound, "Halted")
	elsewhere.Namespace = plain
	if err := admin.Create(ctx, elsewhere); err == nil || !strings.Contains(err.Error(), "must have exactly one binding method") {
		t.Errorf("in a namespace without a network of its own: %v", err)
	}
	for _, c := range []struct{ namespace, spec, want string }{
		{tenant, silent, "l2bridge"}, {plain, silent, "masquerade"}, {tenant, asked, "masquerade"}, {tenant, unbound, "l2bridge"},
	} {
		vmi := &virtv1.VirtualMachineInstance{ObjectMeta: metav1.ObjectMeta{GenerateName: "bare-", Namespace: c.namespace}}
		vmi.Spec = vm("", c.spec, "").Spec.Template.Spec
		if err := admin.Create(ctx, vmi); err != nil {
			t.Fatal(err)
		}
		if got := bindingOf(vmi.Spec); got != c.want {
			t.Errorf("%s in a tenant's namespace (%v) has binding %s, want %s", c.spec, c.namespace == tenant, got, c.want)
		}
	}
}

func bindingOf(spec virtv1.VirtualMachineInstanceSpec) string {
	switch nic := spec.Domain.Devices.Interfaces[0]; {
	case nic.Binding != nil:
		return nic.Binding.Name
	case nic.Masquerade != nil:
		return "masquerade"
	}
	return "none"
}

func TestWishesOfMachines(t *testing.T) {
	ctx, admin, _ := installed(t)
	tenant, plain := namespace(ctx, t, admin, true), namespace(ctx, t, admin, false)
	for _, c := range []struct{ namespace, key, value, want string }{
		{tenant, "v1.multus-cni.io/default-network", "[]", "annotation v1.multus-cni.io/default-network must not be set on virtual machines"},
		{plain, "v1.multus-cni.io/default-network", "[]", ""},
		{tenant, "network.kubevirt.io/addresses", "10.0.0.1", "is not a JSON object of lists"},
		{tenant, "network.kubevirt.io/addresses", `{"default":["10.0.0.1"]}`, ""},
	} {
		machine := vm("", "{domain: {memory: {guest: 64Mi}, devices: {}}}", "Halted")
		machine.GenerateName, machine.Namespace = "wish-", c.namespace
		machine.Spec.Template.ObjectMeta.Annotations = map[string]string{c.key: c.value}
		err := admin.Create(ctx, machine)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

func TestDefinitionsAreChecked(t *testing.T) {
	ctx, admin, as := installed(t)
	ns, other := namespace(ctx, t, admin, false), namespace(ctx, t, admin, false)
	ours := func(fields string) string {
		return `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","netAttachDefName":"` + ns + `/net",` + fields + `}`
	}
	for _, c := range []struct{ name, config, want string }{
		{"not JSON", `{"type": bridge}`, "spec.config is not a CNI configuration in JSON"},
		{"another plugin", `{"cniVersion":"0.3.1","type":"bridge","ipam":{"type":"static"},"topology":"Layer2"}`, ""},
		{"a chain of others", `{"cniVersion":"0.3.1","name":"x","plugins":[{"type":"bridge"},{"type":"tuning"}]}`, ""},
		{"nothing", "", ""},
		{"good", ours(`"name":"blue","topology":"layer2"`), ""},
		{"the cluster's network", `{"cniVersion":"1.0.0","type":"ovn-k8s-cni-overlay","name":"ovn-kubernetes"}`, ""},
		{"name of another", strings.Replace(ours(`"name":"blue","topology":"layer2"`), "/net", "/other", 1),
			"net-attach-def name (" + ns + "/net) is inconsistent with config (" + ns + "/other)"},
		{"topology's case", ours(`"name":"blue","topology":"Layer2"`), `topology "Layer2" is not known`},
		{"role's case", ours(`"name":"blue","topology":"layer2","role":"Primary"`), `role "Primary" is not known`},
		{"ipam", ours(`"name":"blue","topology":"layer2","ipam":{"type":"whereabouts"}`), "IPAM key is not supported. Use OVN-K provided IPAM via the `subnets` attribute"},
		{"bad CIDR", ours(`"name":"blue","topology":"layer2","subnets":"10.100.0.0"`), `"10.100.0.0" is not a range`},
		{"overlap", ours(`"name":"blue","topology":"layer2","subnets":"10.96.3.0/24"`), `subnet "10.96.3.0/24" overlaps service subnet "10.96.0.0/16"`},
		{"small MTU", ours(`"name":"blue","topology":"layer2","subnets":"fd00:9::/64","mtu":1000`), "mtu 1000 must lie between 1280 and"},
		{"layer3 persistent", ours(`"name":"blue","topology":"layer3","subnets":"10.100.0.0/16/24","allowPersistentIPs":true`), "layer3 topology does not allow persistent IPs"},
		{"a network of the API", ours(`"name":"cluster_udn_shared","topology":"layer2"`), `network name "cluster_udn_shared" is kept for the user-defined networks of the cluster`},
		{"another tenant's network", ours(`"name":"` + other + `_net","topology":"layer2"`), "is kept for the user-defined networks of namespace " + other},
		{"an underscore in its own name", ours(`"name":"blue_net","topology":"layer2"`), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "net"}}
			d.Spec.Config = c.config
			err := admin.Create(ctx, d, client.DryRunAll)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}

	t.Run("networks of others", func(t *testing.T) {
		const config = `{"type":"ovn-k8s-cni-overlay","netAttachDefName":"%s/%s","name":"%s","topology":"layer2"%s}`
		const primary = `,"role":"primary","subnets":"10.20.0.0/16"`
		create := func(namespace, name, network, fields string, owners ...metav1.OwnerReference) error {
			d := &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, OwnerReferences: owners}}
			d.Spec.Config = fmt.Sprintf(config, namespace, name, network, fields)
			return admin.Create(ctx, d)
		}
		yes := true
		owner := metav1.OwnerReference{APIVersion: "k8s.ovn.org/v1", Kind: "UserDefinedNetwork", Name: "data", UID: "u", Controller: &yes}
		if err := errors.Join(create(other, "hand", "by-hand", primary), create(other, "second", "by-hand", primary), create(other, "data", other+"_data", "", owner)); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			err  error
			want string
		}{
			{create(ns, "hand", "by-hand", primary), `network name "by-hand" is the primary network of another namespace`},
			{create(other, "stray", other+"_data", ""), "belongs to the user-defined network that definition " + other + "/data is made from"},
		} {
			if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
				t.Errorf("%v, want %q", c.err, c.want)
			}
		}
	})

	t.Run("two that say different things of one network", func(t *testing.T) {
		create := func(ns, more string) error {
			d := &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "net"}}
			d.Spec.Config = fmt.Sprintf(`{"type":"ovn-k8s-cni-overlay","netAttachDefName":"%s/net","name":"green","topology":"layer2"%s}`, ns, more)
			return admin.Create(ctx, d)
		}
		if err := create(ns, ""); err != nil {
			t.Fatal(err)
		}
		want := "NAD " + other + "/net CNI config does not match that of network green"
		if err := create(other, `,"mtu":1300`); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err := create(other, ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("the controller's own are not held up", func(t *testing.T) {
		d := &nadv1.NetworkAttachmentDefinition{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "made"}}
		d.Spec.Config = strings.Replace(ours(`"name":"cluster_udn_shared","topology":"layer2"`), "/net", "/made", 1)
		if err := as(admission.ControllerUser).Create(ctx, d); err != nil {
			t.Error(err)
		}
	})
}

func TestNetworkWarnings(t *testing.T) {
	ctx, admin, _ := installed(t)
	tenant, plain := namespace(ctx, t, admin, true), namespace(ctx, t, admin, false)
	const manifest = `
apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: net, namespace: %s}
spec: {topology: Layer2, layer2: {role: Primary, subnets: [%s]}}
`
	const cluster = `
apiVersion: k8s.ovn.org/v1
kind: ClusterUserDefinedNetwork
metadata: {name: net}
spec: {namespaceSelector: {matchLabels: {a: b}}, network: {topology: Layer2, layer2: {role: Primary, subnets: [10.130.0.0/16]}}}
`
	for _, c := range []struct{ name, manifest, want string }{
		{"good", fmt.Sprintf(manifest, tenant, "10.20.0.0/16"), ""},
		{"overlap", fmt.Sprintf(manifest, tenant, "10.130.0.0/16"), `Warning: this network will not be created: subnet "10.130.0.0/16" overlaps cluster subnet "10.128.0.0/14"`},
		{"cluster's overlap", cluster, `Warning: this network will not be created: subnet "10.130.0.0/16" overlaps cluster subnet "10.128.0.0/14"`},
		{"no label", fmt.Sprintf(manifest, plain, "10.20.0.0/16"), "was made without the label k8s.ovn.org/primary-user-defined-network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, said, err := server.Kubectl(ctx, strings.NewReader(c.manifest), "create", "--dry-run=server", "-f", "-")
			if err != nil || (said == "") != (c.want == "") || !strings.Contains(said, c.want) {
				t.Errorf("%v, says %q, want %q", err, said, c.want)
			}
		})
	}
}
