// Package policies holds rules about objects that are not Patchbay's own, or that need no more than the object: the API server
// itself evaluates them, so they hold while no process of Patchbay runs. It puts them into an API server and knows nothing else.
package policies

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"

	admission "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	apply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	clientset "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/rest"
)

// FieldOwner owns the policies' fields in server-side apply.
const FieldOwner = "patchbay-policies"

//go:embed *.yaml
var files embed.FS

// policy is a rule and its published text.
type policy struct {
	admission.ValidatingAdmissionPolicy
	text []byte
}

// Apply puts every policy into the API server, bound to the whole cluster. A policy whose failures are ignored only warns.
func Apply(ctx context.Context, config *rest.Config) error {
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("apply admission policies: %w", err)
	}
	all, err := read()
	if err != nil {
		return err
	}
	force := true // an older release, or a person, may own fields
	for _, p := range all {
		_, err := client.ValidatingAdmissionPolicies().Patch(ctx, p.Name, types.ApplyYAMLPatchType, p.text,
			metav1.PatchOptions{FieldManager: FieldOwner, Force: &force})
		if err != nil {
			return fmt.Errorf("apply admission policy %s: %w", p.Name, err)
		}
		if _, err := client.ValidatingAdmissionPolicyBindings().Apply(ctx, binding(p), metav1.ApplyOptions{FieldManager: FieldOwner, Force: true}); err != nil {
			return fmt.Errorf("bind admission policy %s: %w", p.Name, err)
		}
	}
	return nil
}

func binding(p policy) *apply.ValidatingAdmissionPolicyBindingApplyConfiguration {
	action := admission.Deny
	if f := p.Spec.FailurePolicy; f != nil && *f == admission.Ignore {
		action = admission.Warn
	}
	return apply.ValidatingAdmissionPolicyBinding(p.Name).
		WithSpec(apply.ValidatingAdmissionPolicyBindingSpec().WithPolicyName(p.Name).WithValidationActions(action))
}

func read() ([]policy, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var all []policy
	for _, entry := range entries {
		body, err := files.ReadFile(entry.Name())
		if err != nil {
			return nil, err
		}
		reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(body)))
		for {
			text, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("%s: %w", entry.Name(), err)
			}
			p := policy{text: text}
			if err := yaml.UnmarshalStrict(text, &p.ValidatingAdmissionPolicy); err != nil {
				return nil, fmt.Errorf("%s: %w", entry.Name(), err)
			}
			all = append(all, p)
		}
	}
	return all, nil
}
