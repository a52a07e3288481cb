// Package crds holds the custom resource definitions that Patchbay serves and puts them into an API server. It knows nothing
// of what the kinds mean.
package crds

import (
	"context"
	"embed"
	"fmt"

	apiext "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	clientset "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/yaml"
)

//go:generate go run -C ../../tools ./crdgen -module .. -out ../api/crds

// FieldOwner owns the definitions' fields in server-side apply.
const FieldOwner = "patchbay-crds"

//go:embed zz_*.yaml
var files embed.FS

// Definition is one custom resource definition and its published text.
type Definition struct {
	*apiext.CustomResourceDefinition
	YAML []byte
}

// All are the definitions, sorted by group and plural.
func All() ([]Definition, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var all []Definition
	for _, entry := range entries {
		body, err := files.ReadFile(entry.Name())
		if err != nil {
			return nil, err
		}
		d := Definition{CustomResourceDefinition: &apiext.CustomResourceDefinition{}, YAML: body}
		if err := yaml.Unmarshal(body, d.CustomResourceDefinition); err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Name(), err)
		}
		all = append(all, d)
	}
	return all, nil
}

// Apply puts every definition into the API server by server-side apply and returns when all of them are established, or when
// ctx ends. Applied again it changes nothing.
func Apply(ctx context.Context, config *rest.Config) error {
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("apply resource definitions: %w", err)
	}
	all, err := All()
	if err != nil {
		return err
	}
	pending := sets.New[string]()
	for _, d := range all {
		force := true // an older release, or a person, may own fields
		_, err := client.CustomResourceDefinitions().Patch(ctx, d.Name, types.ApplyYAMLPatchType, d.YAML,
			metav1.PatchOptions{FieldManager: FieldOwner, Force: &force})
		if err != nil {
			return fmt.Errorf("apply resource definition %s: %w", d.Name, err)
		}
		pending.Insert(d.Name)
	}
	return waitEstablished(ctx, client.RESTClient(), pending)
}

// waitEstablished returns once the API server serves every pending kind.
func waitEstablished(ctx context.Context, client cache.Getter, pending sets.Set[string]) error {
	list := cache.NewListWatchFromClient(client, "customresourcedefinitions", metav1.NamespaceAll, fields.Everything())
	_, err := watchtools.UntilWithSync(ctx, list, &apiext.CustomResourceDefinition{}, nil, func(e watch.Event) (bool, error) {
		if d, ok := e.Object.(*apiext.CustomResourceDefinition); ok && established(d) {
			pending.Delete(d.Name)
		}
		return pending.Len() == 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait until the API server serves %v: %w", sets.List(pending), err)
	}
	return nil
}

func established(d *apiext.CustomResourceDefinition) bool {
	for _, c := range d.Status.Conditions {
		if c.Type == apiext.Established {
			return c.Status == apiext.ConditionTrue
		}
	}
	return false
}
