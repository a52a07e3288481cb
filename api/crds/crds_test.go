package crds_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	clientset "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"patchbay/api/crds"
	"patchbay/test/apiserver"
)

// maxStored is a third of what etcd refuses, so that growth is noticed in time.
const maxStored = 512 << 10

var server *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &server)) }

// patience is how long a test may take on a busy machine.
const patience = 5 * time.Minute

// applyOnce serves all tests but the one of applying itself.
var applyOnce = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return crds.Apply(ctx, server.Config)
})

// applied gives a client of an API server that serves the definitions.
func applied(t *testing.T) (context.Context, client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	if err := applyOnce(); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(server.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	ctx, _ := applied(t)
	extensions, err := clientset.NewForConfig(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	versions := func() map[string]string {
		list, err := extensions.CustomResourceDefinitions().List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, d := range list.Items {
			found[d.Name] = d.ResourceVersion
			checkHealthy(t, d)
		}
		return found
	}
	before := versions()
	if err := crds.Apply(ctx, server.Config); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, versions()); diff != "" {
		t.Errorf("resource versions after the second apply (-first +second):\n%s", diff)
	}
}

// checkHealthy fails when the API server has anything to say against a definition.
func checkHealthy(t *testing.T, d apiext.CustomResourceDefinition) {
	t.Helper()
	for _, c := range d.Status.Conditions {
		if c.Type == apiext.NonStructuralSchema && c.Status == apiext.ConditionTrue {
			t.Errorf("%s: not a structural schema: %s", d.Name, c.Message)
		}
	}
	stored, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored) > maxStored {
		t.Errorf("%s takes %d bytes in etcd, more than %d; shorten the descriptions", d.Name, len(stored), maxStored)
	}
}

func TestStrictValidationAccepts(t *testing.T) {
	ctx, c := applied(t)
	for _, path := range manifests(t, "accepted") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			object, _ := load(t, path)
			sent := object.DeepCopy()
			if err := create(ctx, c, object); err != nil {
				t.Fatal(err)
			}
			for _, field := range []string{"spec", "status"} {
				if field == "status" && object.GetKind() != "VirtualMachineInstance" {
					continue // written through its own subresource
				}
				if diff := cmp.Diff(sent.Object[field], object.Object[field]); diff != "" {
					t.Errorf("the API server changed %s (-sent +stored):\n%s", field, diff)
				}
			}
		})
	}
}

func TestStrictValidationRefuses(t *testing.T) {
	ctx, c := applied(t)
	for _, path := range manifests(t, "refused") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			object, want := load(t, path)
			err := create(ctx, c, object)
			if err == nil || want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one that contains %q", err, want)
			}
		})
	}
}

func create(ctx context.Context, c client.Client, object *unstructured.Unstructured) error {
	return c.Create(ctx, object, client.FieldValidation(metav1.FieldValidationStrict), client.DryRunAll)
}

func manifests(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no manifests in testdata/%s: %v", dir, err)
	}
	return paths
}

var clusterScoped = map[string]bool{"MigrationPolicy": true, "ClusterUserDefinedNetwork": true, "NodeNetworkConfigurationPolicy": true}

// load reads a manifest and what its first line wants the error to contain.
func load(t *testing.T, path string) (object *unstructured.Unstructured, want string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	object = &unstructured.Unstructured{}
	asJSON, err := yaml.YAMLToJSON(body)
	if err != nil {
		t.Fatal(err)
	}
	if err := object.UnmarshalJSON(asJSON); err != nil {
		t.Fatal(err)
	}
	if !clusterScoped[object.GetKind()] {
		object.SetNamespace("default")
	}
	first, _, _ := strings.Cut(string(body), "\n")
	want, _ = strings.CutPrefix(first, "# want: ")
	return object, want
}

func TestColumnsAndShortNames(t *testing.T) {
	ctx, c := applied(t)
	for _, name := range []string{"masquerade", "instance", "migration", "kubevirt", "policy", "hyperconverged", "udn", "cudn", "nad", "multi-policy", "nncp"} {
		object, _ := load(t, filepath.Join("testdata", "accepted", name+".yaml"))
		if err := c.Create(ctx, object); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(ctx), object) })
	}
	for _, tc := range []struct {
		args    string
		columns []string
		row     string // begins the first line after the header, blanks squeezed
	}{
		{args: "vm", columns: []string{"NAME", "AGE", "STATUS", "READY"}, row: "shop-01 "},
		{args: "vms", columns: []string{"NAME", "AGE", "STATUS", "READY"}, row: "shop-01 "},
		{args: "vmi", columns: []string{"NAME", "AGE", "PHASE", "IP", "NODENAME", "READY"}, row: "bare-01 "},
		{args: "vmis -o wide", columns: []string{"NAME", "AGE", "PHASE", "IP", "NODENAME", "READY", "LIVE-MIGRATABLE", "PAUSED"}, row: "bare-01 "},
		{args: "vmim", columns: []string{"NAME", "PHASE", "VMI"}, row: "move-shop-01 shop-01"},
		{args: "vmims", columns: []string{"NAME", "PHASE", "VMI"}, row: "move-shop-01 shop-01"},
		{args: "kv", columns: []string{"NAME", "AGE", "PHASE"}, row: "kubevirt "},
		{args: "migrationpolicies", columns: []string{"NAME", "AGE"}, row: "slow "},
		{args: "hco", columns: []string{"NAME", "AGE"}, row: "kubevirt-hyperconverged "},
		{args: "udn", columns: []string{"NAME", "AGE"}, row: "blue "},
		{args: "cudn", columns: []string{"NAME", "AGE"}, row: "shared "},
		{args: "nad", columns: []string{"NAME", "AGE"}, row: "l2-flat "},
		{args: "net-attach-def", columns: []string{"NAME", "AGE"}, row: "l2-flat "},
		{args: "multi-policy", columns: []string{"NAME", "AGE"}, row: "web-only "},
		{args: "nncp", columns: []string{"NAME", "STATUS", "REASON"}, row: "br1-eth1 "},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, problems, err := server.Kubectl(ctx, nil, append([]string{"get"}, strings.Fields(tc.args)...)...)
			if err != nil {
				t.Fatalf("%v: %s", err, problems)
			}
			lines := strings.Split(out, "\n")
			if diff := cmp.Diff(tc.columns, strings.Fields(lines[0])); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if row := strings.Join(strings.Fields(lines[1]), " ") + " "; !strings.HasPrefix(row, tc.row) {
				t.Errorf("first row %q, want prefix %q", row, tc.row)
			}
		})
	}
	checkInstanceRow(t, ctx)
	checkAllListsMachines(t, ctx)
}

func checkInstanceRow(t *testing.T, ctx context.Context) {
	out, _, err := server.Kubectl(ctx, nil, "get", "vmi", "bare-01", "-o", "wide", "--no-headers")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(out)
	got[1] = "AGE"
	if diff := cmp.Diff([]string{"bare-01", "AGE", "Running", "10.128.0.9", "node-1", "True", "True"}, got); diff != "" {
		t.Errorf("row of the instance (-want +got):\n%s", diff)
	}
}

func checkAllListsMachines(t *testing.T, ctx context.Context) {
	out, _, err := server.Kubectl(ctx, nil, "get", "all")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"virtualmachine.kubevirt.io/shop-01", "virtualmachineinstance.kubevirt.io/bare-01"} {
		if !strings.Contains(out, want) {
			t.Errorf("kubectl get all lacks %s:\n%s", want, out)
		}
	}
}

// The status of an instance is written through the object itself, as published clients do; that of a machine is not.
func TestStatusSubresource(t *testing.T) {
	ctx, c := applied(t)
	for name, want := range map[string]bool{"masquerade": true, "instance": false} {
		object, _ := load(t, filepath.Join("testdata", "accepted", name+".yaml"))
		if err := c.Create(ctx, object); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(ctx), object) })
		err := c.Status().Patch(ctx, object, client.RawPatch(types.MergePatchType, []byte(`{"status":{}}`)))
		if got := err == nil; got != want {
			t.Errorf("%s: patch of the status subresource: %v, want success %t", object.GetKind(), err, want)
		}
	}
}

func TestDeprecatedVersionWarns(t *testing.T) {
	ctx, _ := applied(t)
	_, problems, err := server.Kubectl(ctx, nil, "create", "--dry-run=server", "-f", filepath.Join("testdata", "accepted", "old-version.yaml"))
	if err != nil {
		t.Fatalf("%v: %s", err, problems)
	}
	if want := "Warning: kubevirt.io/v1alpha3 is now deprecated"; !strings.Contains(problems, want) {
		t.Errorf("standard error %q, want %q", problems, want)
	}
}
