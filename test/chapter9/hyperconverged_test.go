package chapter9

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

const (
	documentedHome = "kubevirt-hyperconverged"
	hcoManifest    = `
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata: {name: kubevirt-hyperconverged}
spec: {}
`
	migrationHCO = `
apiVersion: hco.kubevirt.io/v1beta1
kind: HyperConverged
metadata:
  name: kubevirt-hyperconverged
spec:
  liveMigrationConfig:
    completionTimeoutPerGiB: 800
    network: migration-net
    parallelMigrationsPerCluster: 5
    parallelOutboundMigrationsPerNode: 2
    progressTimeout: 150
`
)

// The HyperConverged object of 9.3.3 and 9.8, in a namespace where published documents put it.
func TestHyperConverged(t *testing.T) {
	kubectl(t, "create", "namespace", documentedHome)
	t.Cleanup(func() {
		_, _ = cluster.Kubectl(context.Background(), "delete", "namespace", documentedHome, "--wait=false")
	})
	cluster.Apply(t, documentedHome, hcoManifest, nil)
	kubevirt := func(path string) string {
		return kubectl(t, "get", "kubevirt", "-n", "patchbay-system", "-o", "jsonpath={.items[0].spec.configuration."+path+"}")
	}
	follows := func(path, want string) {
		t.Helper()
		cluster.Eventually(t, soon, "the KubeVirt object follows", func() error {
			if got := kubevirt(path); got != want {
				return fmt.Errorf("%s is %q, want %q", path, got, want)
			}
			return nil
		})
	}
	t.Run("9.3.3.2-K1 passt is enabled by an annotation", func(t *testing.T) {
		out := kubectl(t, "annotate", "hco", hcoName, "-n", documentedHome, "hco.kubevirt.io/deployPasstNetworkBinding=true", "--overwrite")
		if want := "hyperconverged.hco.kubevirt.io/kubevirt-hyperconverged annotated"; out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
		follows("developerConfiguration.featureGates[*]", "PasstBinding")
		if all := kubevirt("network.binding"); !strings.Contains(all, `"passt"`) || !strings.Contains(all, `"l2bridge"`) {
			t.Errorf("registered bindings: %s", all)
		}
	})
	t.Run("9.3.3.2-C7 false takes it back", func(t *testing.T) {
		kubectl(t, "annotate", "hco", hcoName, "-n", documentedHome, "hco.kubevirt.io/deployPasstNetworkBinding=false", "--overwrite")
		follows("developerConfiguration.featureGates[*]", "")
		if all := kubevirt("network.binding"); strings.Contains(all, `"passt"`) {
			t.Errorf("registered bindings: %s", all)
		}
	})
	t.Run("9.8.1-C1 the network of migrations is set there", func(t *testing.T) {
		cluster.Apply(t, documentedHome, migrationHCO, nil)
		follows("migrations.network", "migration-net")
		follows("migrations.parallelOutboundMigrationsPerNode", "2")
		follows("migrations.completionTimeoutPerGiB", "800")
	})
	t.Run("9.8.1-C11 a key that is deleted has its default again", func(t *testing.T) {
		kubectl(t, "patch", "hco", hcoName, "-n", documentedHome, "--type=json", "-p", `[{"op":"remove","path":"/spec/liveMigrationConfig/parallelOutboundMigrationsPerNode"}]`)
		follows("migrations.parallelOutboundMigrationsPerNode", "1")
	})
}
