package chapter9

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"patchbay/test/local"
)

const primaryLabel = "k8s.ovn.org/primary-user-defined-network"

// tenantNamespace makes a namespace that has the primary label from its beginning, and more labels given as "key", "value".
func tenantNamespace(t *testing.T, more ...string) string {
	t.Helper()
	return cluster.Namespace(t, append([]string{primaryLabel, ""}, more...)...)
}

// udnManifest is a primary network of a namespace.
const udnManifest = `
apiVersion: k8s.ovn.org/v1
kind: UserDefinedNetwork
metadata: {name: {{.name}}}
spec:
  topology: Layer2
  layer2: {role: {{.role}}, subnets: [{{.subnets}}], ipam: {lifecycle: Persistent}}
`

func primaryUDN(t *testing.T, ns, name, subnets string) {
	t.Helper()
	cluster.Apply(t, ns, udnManifest, map[string]string{"name": name, "role": "Primary", "subnets": subnets})
	reports(t, ns, "udn/"+name, "True NetworkAttachmentDefinitionCreated NetworkAttachmentDefinition has been created")
}

// cudnManifest is a primary network of the namespaces that a selector names.
const cudnManifest = `
apiVersion: k8s.ovn.org/v1
kind: ClusterUserDefinedNetwork
metadata: {name: {{.name}}}
spec:
  namespaceSelector: {{.selector}}
  network:
    topology: Layer2
    layer2: {role: {{.role}}, subnets: [{{.subnets}}], ipam: {lifecycle: Persistent}}
`

func primaryCUDN(t *testing.T, name, selector, subnets string) {
	t.Helper()
	clusterNetwork(t, name, "Primary", selector, subnets)
}

func clusterNetwork(t *testing.T, name, role, selector, subnets string) {
	t.Helper()
	cluster.Apply(t, "default", cudnManifest, map[string]string{"name": name, "role": role, "selector": selector, "subnets": subnets})
	t.Cleanup(func() {
		if _, err := cluster.Kubectl(context.Background(), "delete", "cudn", name, "--timeout=2m"); err != nil {
			t.Errorf("delete cudn %s: %v", name, err)
		}
	})
}

// networkCreated is a network's condition NetworkCreated: "STATUS REASON MESSAGE".
func networkCreated(ctx context.Context, ns, network string) (string, error) {
	const c = `.status.conditions[?(@.type=="NetworkCreated")]`
	return cluster.Kubectl(ctx, "get", network, "-n", ns, "-o", "jsonpath={"+c+".status} {"+c+".reason} {"+c+".message}")
}

// reports waits until a network's condition contains a text.
func reports(t *testing.T, ns, network, want string) {
	t.Helper()
	cluster.Eventually(t, soon, network+" reports", func() error {
		out, err := networkCreated(t.Context(), ns, network)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("it says %q, want %q", out, want)
		}
		return err
	})
}

// nadConfig is what a definition's configuration says, as one line.
func nadConfig(t *testing.T, ns, definition string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "get", "net-attach-def", definition, "-n", ns, "-o", "jsonpath={.spec.config}")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func hasDefinition(t *testing.T, ns, name string) bool {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "get", "net-attach-def", "-n", ns, "-o", "name")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(out, "/"+name+"\n")
}

// refusesCommand runs a kubectl command that must be refused with a text.
func refusesCommand(t *testing.T, want string, args ...string) {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), args...)
	if err == nil {
		t.Errorf("kubectl %s: accepted (%s), want a refusal that says %q", strings.Join(args, " "), out, want)
	} else if !strings.Contains(err.Error(), want) {
		t.Errorf("kubectl %s: refused with %q, want %q", strings.Join(args, " "), err, want)
	}
}

// applyExample applies a manifest of examples/ and returns what kubectl printed.
func applyExample(t *testing.T, name string, flags ...string) string {
	t.Helper()
	file := filepath.Join(cluster.Root(), "examples", name)
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	out, err := cluster.Kubectl(t.Context(), append([]string{"apply", "-f", file}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// may asks whether a user may do something.
func may(t *testing.T, user, verb, resource, ns string) bool {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "auth", "can-i", verb, resource, "-n", ns, "--as", user)
	var failed *local.CommandError
	if err != nil && !errors.As(err, &failed) { // the command fails when the answer is no
		t.Fatal(err)
	}
	return strings.TrimSpace(out) == "yes"
}

// 9.3.2.1: the namespace, its label, and what happens without it.
func TestTenantNamespaces(t *testing.T) {
	t.Run("9.3.2.1-K1 applying the namespace", func(t *testing.T) {
		out := applyExample(t, "tenant-namespace.yaml")
		t.Cleanup(func() {
			_, _ = cluster.Kubectl(context.Background(), "delete", "namespace", "tenant-a", "--timeout=2m")
		})
		if out != "namespace/tenant-a created\n" {
			t.Errorf("printed %q", out)
		}
	})
	plain, tenant := cluster.Namespace(t), tenantNamespace(t, "team", "x")
	const text = "The '" + primaryLabel + "' label cannot be added/removed after the namespace was created"
	t.Run("9.3-C3 the label comes with the namespace", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "get", "namespace", tenant, "-o", "jsonpath={.metadata.labels}")
		if err != nil || !strings.Contains(out, `"`+primaryLabel+`":""`) {
			t.Errorf("%v, labels %s", err, out)
		}
	})
	t.Run("9.3-C4 the label cannot be added or removed later", func(t *testing.T) {
		refusesCommand(t, text, "label", "namespace", plain, primaryLabel+"=")
		refusesCommand(t, text, "label", "namespace", tenant, primaryLabel+"-")
		if _, err := cluster.Kubectl(t.Context(), "label", "namespace", tenant, "team=y", "--overwrite"); err != nil {
			t.Errorf("another label: %v", err)
		}
		if _, err := cluster.Kubectl(t.Context(), "label", "namespace", tenant, primaryLabel+"=other", "--overwrite"); err != nil {
			t.Errorf("the label's value: %v", err)
		}
	})
	t.Run("9.3.2.1-C1 only a labelled namespace gets a primary network", func(t *testing.T) {
		cluster.Apply(t, plain, udnManifest, map[string]string{"name": "net", "role": "Primary", "subnets": "10.210.0.0/24"})
		reports(t, plain, "udn/net", fmt.Sprintf("False SyncError invalid primary network state for namespace %q", plain))
		if hasDefinition(t, plain, "net") {
			t.Error("the definition was made")
		}
		primaryUDN(t, tenant, "net", "10.211.0.0/24")
	})
	t.Run("9.3-C10 a pod without the label is on the default network", func(t *testing.T) {
		onDefaultNetwork(t, plain, "early")
	})
	t.Run("9.3.2.1-C2 labels that a selector asks for", func(t *testing.T) {
		other := tenantNamespace(t, "wanted", plain)
		primaryCUDN(t, "label-"+plain, "{matchLabels: {wanted: "+plain+"}}", "10.212.0.0/24")
		reports(t, "", "cudn/label-"+plain, "True NetworkAttachmentDefinitionCreated NetworkAttachmentDefinition has been created in following namespaces: ["+other+"]")
	})
	t.Run("9.3.2.1-C3 a cluster administrator makes namespaces", func(t *testing.T) {
		if may(t, "jane", "create", "namespaces", "") {
			t.Error("a user without rights may create namespaces")
		}
	})
	t.Run("9.3.2.1-C4 the name is a DNS label", func(t *testing.T) {
		refusesCommand(t, "a lowercase RFC 1123 label must consist of", "create", "namespace", "tenant_a")
	})
}

// onDefaultNetwork runs a pod and wants all its addresses from the cluster's ranges, and no other network.
func onDefaultNetwork(t *testing.T, ns, name string) {
	t.Helper()
	box := pod(t, ns, name, "node-1")
	if ip := ipv4(box.ips); !strings.HasPrefix(ip, "10.128.") {
		t.Errorf("the pod's addresses are %v", box.ips)
	}
	out, err := box.run("ip -o link | grep -c ovn-udn1; ip -4 route show default")
	if !strings.HasPrefix(out, "0") || !strings.Contains(out, "dev eth0") {
		t.Errorf("%v: links and routes: %s", err, out)
	}
}

// 9.3: namespaces and networks that do not match.
func TestPrimaryNetworkMismatch(t *testing.T) {
	plain := cluster.Namespace(t, "mismatch", "yes")
	t.Run("9.3-C11 a primary CUDN is not made without the label", func(t *testing.T) {
		primaryCUDN(t, "mismatch", "{matchLabels: {mismatch: \"yes\"}}", "10.213.0.0/24")
		reports(t, "", "cudn/mismatch", "False NetworkAttachmentDefinitionSyncError namespace "+plain+": invalid primary network state")
		if hasDefinition(t, plain, "mismatch") {
			t.Error("the definition was made")
		}
		t.Run("9.3-C12 and a new pod is on the default network", func(t *testing.T) { onDefaultNetwork(t, plain, "late") })
	})
	t.Run("9.3-C13 pods wait for the primary network", func(t *testing.T) {
		ns := tenantNamespace(t)
		cluster.Apply(t, ns, podManifest, map[string]string{"name": "waits", "node": "node-1"})
		cluster.Apply(t, ns, strings.ReplaceAll(bareManifest, "name: bare", "name: waits"), nil)
		cluster.Eventually(t, soon, "the VMI says what it waits for", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "vmi", "waits", "-n", ns, "-o", "jsonpath={.status.conditions}")
			if err == nil && !strings.Contains(out, "no primary network yet") {
				err = fmt.Errorf("conditions %s", out)
			}
			return err
		})
		staysSo(t, 5*time.Second, func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "pods", "-n", ns, "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.phase} {end}")
			if err == nil && strings.TrimSpace(out) != "waits=Pending" {
				err = fmt.Errorf("pods: %s", out)
			}
			return err
		})
		primaryUDN(t, ns, "net", "10.214.0.0/24")
		cluster.PodReady(t, ns, "waits")
		cluster.Eventually(t, soon, "the machine has a pod", func() error {
			out, err := cluster.Kubectl(t.Context(), "get", "pods", "-n", ns, "-l", "kubevirt.io=virt-launcher", "-o", "name")
			if err == nil && out == "" {
				err = errors.New("none")
			}
			return err
		})
	})
}

// staysSo wants a state to last.
func staysSo(t *testing.T, how time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(how); time.Now().Before(deadline); {
		if err := check(); err != nil {
			t.Error(err)
			return
		}
	}
}

// 9.3.2.2: the network of one namespace.
func TestUserDefinedNetwork(t *testing.T) {
	ns := tenantNamespace(t)
	t.Run("9.3.2.2-K1 applying the manifest", func(t *testing.T) {
		applyExample(t, "tenant-namespace.yaml")
		t.Cleanup(func() {
			_, _ = cluster.Kubectl(context.Background(), "delete", "namespace", "tenant-a", "--timeout=2m")
		})
		if out := applyExample(t, "tenant-network.yaml", "--validate=true"); out != "userdefinednetwork.k8s.ovn.org/tenant-a-net created\n" {
			t.Errorf("printed %q", out)
		}
		if _, err := cluster.Kubectl(t.Context(), "wait", "--for=condition=NetworkCreated", "udn/tenant-a-net", "-n", "tenant-a", "--timeout=60s"); err != nil {
			t.Error(err)
		}
	})
	t.Run("9.3.2.2-K2 finalizer and condition", func(t *testing.T) {
		primaryUDN(t, ns, "net", "10.215.0.0/16, 'fd00:215::/64'")
		out, err := cluster.Kubectl(t.Context(), "get", "userdefinednetworks", "net", "-n", ns, "-o", "yaml")
		for _, want := range []string{"- k8s.ovn.org/user-defined-network-protection", "reason: NetworkAttachmentDefinitionCreated",
			"type: NetworkCreated", `status: "True"`, "message: NetworkAttachmentDefinition has been created", "lastTransitionTime:"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", err, want, out)
			}
		}
	})
	t.Run("9.3-C2 UDN and CUDN can be primary", func(t *testing.T) {
		other := tenantNamespace(t)
		primaryCUDN(t, "both-"+other, "{matchLabels: {kubernetes.io/metadata.name: "+other+"}}", "10.216.0.0/24")
		reports(t, "", "cudn/both-"+other, "["+other+"]")
		for _, c := range []string{nadConfig(t, ns, "net"), nadConfig(t, other, "both-"+other)} {
			if !strings.Contains(c, `"role":"primary"`) {
				t.Error(c)
			}
		}
	})
	t.Run("9.3.2.2-C6 Layer2 is one switch", func(t *testing.T) {
		if c := nadConfig(t, ns, "net"); !strings.Contains(c, `"topology":"layer2"`) || !strings.Contains(c, `"name":"`+ns+`_net"`) {
			t.Error(c)
		}
		refusedWith(t, ns, strings.Replace(udnManifest, "Layer2", "layer2", 1), udnValues("case", "Primary", "10.1.0.0/24"), "Unsupported value")
	})
	t.Run("9.3-C14 one primary network", func(t *testing.T) {
		cluster.Apply(t, ns, udnManifest, udnValues("second", "Primary", "10.217.0.0/24"))
		reports(t, ns, "udn/second", fmt.Sprintf("False SyncError primary network already exist in namespace %q: %q", ns, "net"))
	})
	t.Run("9.3-C15 ranges of the cluster", func(t *testing.T) {
		for subnet, want := range map[string]string{
			"10.129.0.0/16":  `subnet "10.129.0.0/16" overlaps cluster subnet "10.128.0.0/14"`,
			"10.96.0.0/24":   `subnet "10.96.0.0/24" overlaps service subnet "10.96.0.0/16"`,
			"100.64.0.0/24":  `subnet "100.64.0.0/24" overlaps cluster join subnet "100.64.0.0/16"`,
			"169.254.0.0/24": `subnet "169.254.0.0/24" overlaps masquerade subnet "169.254.0.0/17"`,
		} {
			name := "o" + strings.NewReplacer(".", "-", "/", "-").Replace(subnet)
			_, warnings, err := cluster.ApplyVerbose(t.Context(), ns, fmt.Sprintf("{apiVersion: k8s.ovn.org/v1, kind: UserDefinedNetwork, "+
				"metadata: {name: %s}, spec: {topology: Layer2, layer2: {role: Secondary, subnets: [%s]}}}", name, subnet))
			if err != nil || !strings.Contains(warnings, want) {
				t.Errorf("%v, warnings %q, want %q", err, warnings, want)
			}
			reports(t, ns, "udn/"+name, "False SyncError "+want)
		}
	})
	t.Run("9.3.2.2-C14 it cannot go while it is in use", func(t *testing.T) {
		shop := tenantNamespace(t)
		primaryUDN(t, shop, "net", "10.218.0.0/24")
		cluster.Apply(t, shop, podManifest, map[string]string{"name": "user", "node": "node-1"})
		cluster.PodReady(t, shop, "user")
		if _, err := cluster.Kubectl(t.Context(), "delete", "udn", "net", "-n", shop, "--wait=false"); err != nil {
			t.Fatal(err)
		}
		reports(t, shop, "udn/net", fmt.Sprintf("False SyncError network in use by the following pods: [%s/user]", shop))
		if !hasDefinition(t, shop, "net") {
			t.Error("the definition is gone")
		}
		if _, err := cluster.Kubectl(t.Context(), "delete", "pod", "user", "-n", shop); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.Kubectl(t.Context(), "wait", "--for=delete", "udn/net", "-n", shop, "--timeout=65s"); err != nil {
			t.Error(err)
		}
	})
}

func udnValues(name, role, subnets string) map[string]string {
	return map[string]string{"name": name, "role": role, "subnets": subnets}
}

// 9.3.2.2: what is refused.
func TestUserDefinedNetworkRules(t *testing.T) {
	ns := tenantNamespace(t)
	const system = "belongs to the system and cannot have"
	t.Run("9.3.2.2-C2 the namespace carries the label", func(t *testing.T) {
		plain := cluster.Namespace(t)
		_, warnings, err := cluster.ApplyVerbose(t.Context(), plain, "{apiVersion: k8s.ovn.org/v1, kind: UserDefinedNetwork, "+
			"metadata: {name: net}, spec: {topology: Layer2, layer2: {role: Primary, subnets: [10.1.0.0/24]}}}")
		if err != nil || !strings.Contains(warnings, "was made without the label "+primaryLabel) {
			t.Errorf("%v, warnings %q", err, warnings)
		}
	})
	t.Run("9.3.2.2-C3 not in default", func(t *testing.T) {
		refusedWith(t, "default", udnManifest, udnValues("net", "Primary", "10.1.0.0/24"), "namespace default "+system)
	})
	t.Run("9.3.2.2-C4 not in openshift namespaces", func(t *testing.T) {
		cluster.Apply(t, "default", "{apiVersion: v1, kind: Namespace, metadata: {name: openshift-chapter9}}", nil)
		t.Cleanup(func() { _, _ = cluster.Kubectl(context.Background(), "delete", "namespace", "openshift-chapter9") })
		refusedWith(t, "openshift-chapter9", udnManifest, udnValues("net", "Primary", "10.1.0.0/24"), "namespace openshift-chapter9 "+system)
	})
	t.Run("9.3.2.2-C5 not in system namespaces", func(t *testing.T) {
		for _, name := range []string{"kube-system", "patchbay-system"} {
			refusedWith(t, name, udnManifest, udnValues("net", "Primary", "10.1.0.0/24"), "namespace "+name+" "+system)
		}
	})
	t.Run("9.3.2.2-C11 not called default", func(t *testing.T) {
		refusedWith(t, ns, udnManifest, udnValues("default", "Primary", "10.1.0.0/24"), "cannot be called default")
	})
	layer2 := func(fields string) string {
		return "{apiVersion: k8s.ovn.org/v1, kind: UserDefinedNetwork, metadata: {name: rules}, spec: {topology: Layer2, layer2: {" + fields + "}}}"
	}
	for name, rules := range map[string]map[string]string{
		"9.3.2.2-C7 role is Primary or Secondary": {"role: primary, subnets: [10.1.0.0/24]": "Unsupported value"},
		"9.3.2.2-C9 Persistent needs subnets":     {"role: Primary, ipam: {lifecycle: Persistent}": "Subnets is required with ipam.mode is Enabled or unset"},
		"9.3.2.2-C10 two families": {
			"role: Primary, subnets: [10.1.0.0/24, 10.2.0.0/24]":                  "When 2 CIDRs are set, they must be from different IP families",
			"role: Primary, subnets: [10.1.0.0/24, 'fd00:1::/64', 'fd00:2::/64']": "must have at most 2 items",
			"role: Primary, subnets: [10.1.0.0]":                                  "CIDR is invalid",
		},
		"9.3.2.2-C12 rules between fields": {
			"role: Primary, subnets: [10.1.0.0/24], ipam: {lifecycle: Forever}":                        "Unsupported value",
			"role: Secondary, subnets: [10.1.0.0/24], ipam: {mode: Disabled}":                          "Subnets must be unset when ipam.mode is Disabled",
			"role: Primary, ipam: {mode: Disabled}":                                                    "Disabled ipam.mode is only supported for Secondary network",
			"role: Secondary, ipam: {mode: Disabled, lifecycle: Persistent}":                           "lifecycle Persistent is only supported when ipam.mode is Enabled",
			"subnets: [10.1.0.0/24]":                                                                   "role: Required value",
			"role: Secondary, subnets: [10.1.0.0/24], ipam: {mode: Enabled, lifecycle: 'Persistent '}": "Unsupported value",
		},
		"9.3.2.2-C13 mtu and joinSubnets": {
			"role: Primary, subnets: [10.1.0.0/24], mtu: 500":                       "should be greater than or equal to 576",
			"role: Primary, subnets: ['fd00:1::/64'], mtu: 1279":                    "MTU should be greater than or equal to 1280 when IPv6 subnet is used",
			"role: Secondary, subnets: [10.1.0.0/24], joinSubnets: [100.66.0.0/16]": "JoinSubnets is only supported for Primary network",
			"role: Primary, subnets: [10.1.0.0/24], mtu: 65537":                     "should be less than or equal to 65536",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for fields, want := range rules {
				refusedWith(t, ns, layer2(fields), nil, want)
			}
		})
	}
	t.Run("9.3.2.2-C8 Persistent is in the definition", func(t *testing.T) {
		primaryUDN(t, ns, "net", "10.219.0.0/24")
		if c := nadConfig(t, ns, "net"); !strings.Contains(c, `"allowPersistentIPs":true`) {
			t.Error(c)
		}
		refusesCommand(t, "Layer2 is immutable", "patch", "udn", "net", "-n", ns, "--type=merge", "-p", `{"spec":{"layer2":{"ipam":null}}}`)
	})
	t.Run("9.3.2.2-C15 RBAC decides", func(t *testing.T) {
		if may(t, "jane", "create", "userdefinednetworks.k8s.ovn.org", ns) {
			t.Error("a user without rights may create networks")
		}
		if _, err := cluster.Kubectl(t.Context(), "create", "rolebinding", "jane", "-n", ns, "--clusterrole=admin", "--user=jane"); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, soon, "the administrator of a namespace may make its networks", func() error {
			if !may(t, "jane", "create", "userdefinednetworks.k8s.ovn.org", ns) {
				return errors.New("he may not")
			}
			return nil
		})
		if may(t, "jane", "create", "clusteruserdefinednetworks.k8s.ovn.org", "") || may(t, "jane", "create", "userdefinednetworks.k8s.ovn.org", "default") {
			t.Error("the administrator of a namespace may make the networks of others")
		}
	})
	t.Run("9.1.1-C2 a CUDN is the cluster's, and its administrators'", func(t *testing.T) {
		out, err := cluster.Kubectl(t.Context(), "api-resources", "--api-group=k8s.ovn.org", "--no-headers")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"clusteruserdefinednetworks cudn k8s.ovn.org/v1 false ClusterUserDefinedNetwork", "userdefinednetworks udn k8s.ovn.org/v1 true UserDefinedNetwork"} {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("no %q in %s", want, out)
			}
		}
		if may(t, "jane", "create", "clusteruserdefinednetworks.k8s.ovn.org", "") {
			t.Error("a user without rights may create CUDNs")
		}
	})
}
