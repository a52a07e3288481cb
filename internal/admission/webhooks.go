package admission

import (
	"context"
	"fmt"
	"strings"

	hooks "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apply "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	applymeta "k8s.io/client-go/applyconfigurations/meta/v1"
	clientset "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/rest"

	hcov1beta1 "patchbay/api/hco/v1beta1"
	ovnv1 "patchbay/api/ovn/v1"
)

const (
	// FieldOwner owns the webhook configurations in server-side apply.
	FieldOwner = "patchbay-admission"
	// configurationName is the name of both configurations.
	configurationName = "patchbay"
	// timeout is how long the API server waits for an answer, in seconds. The rules take milliseconds.
	timeout = 5
)

// webhook is one of the calls that the API server makes.
type webhook struct {
	name     string // clients show it: admission webhook "NAME" denied the request
	path     string // below Prefix
	mutating bool
	group    string
	versions []string
	resource string
	on       []hooks.OperationType
	scope    hooks.ScopeType
	optional bool   // the request goes on when the controller is away
	only     string // CEL; the webhook is not called when it is false
	records  bool   // an answer leaves something behind, unless it is to a dry run
	// namespaces limits the webhook to those with such labels; nil means all.
	namespaces *metav1.LabelSelector
	decide     decide
}

var (
	create         = []hooks.OperationType{hooks.Create}
	update         = []hooks.OperationType{hooks.Update}
	createOrUpdate = []hooks.OperationType{hooks.Create, hooks.Update}
	virtVersions   = []string{"v1", "v1alpha3"}
)

// webhooks are all calls, by the names of published releases.
func (s *Server) webhooks() []webhook {
	const group = virtGroup
	return []webhook{
		{name: "virtualmachines-mutator.kubevirt.io", path: "virtualmachines-mutate", mutating: true,
			group: group, versions: virtVersions, resource: "virtualmachines", on: createOrUpdate, decide: s.mutateVM},
		{name: "virtualmachineinstances-mutator.kubevirt.io", path: "virtualmachineinstances-mutate", mutating: true,
			group: group, versions: virtVersions, resource: "virtualmachineinstances", on: createOrUpdate,
			only: `request.operation == 'CREATE' || !request.userInfo.username.startsWith('patchbay:')`, decide: s.mutateVMI},
		{name: "migrations-mutator.kubevirt.io", path: "migrations-mutate", mutating: true,
			group: group, versions: virtVersions, resource: "virtualmachineinstancemigrations", on: create, decide: s.mutateMigration},
		{name: "mutate-hyperconverged-hco.kubevirt.io", path: "hyperconvergeds-mutate", mutating: true,
			group: hcov1beta1.GroupVersion.Group, versions: []string{hcov1beta1.GroupVersion.Version, hcov1beta1.Version1},
			resource: "hyperconvergeds", on: createOrUpdate, decide: mutateHyperConverged},
		{name: "virtualmachine-validator.kubevirt.io", path: "virtualmachines-validate",
			group: group, versions: virtVersions, resource: "virtualmachines", on: createOrUpdate, decide: s.validateVM},
		{name: "virtualmachineinstances-create-validator.kubevirt.io", path: "virtualmachineinstances-validate-create",
			group: group, versions: virtVersions, resource: "virtualmachineinstances", on: create, decide: s.validateVMI},
		{name: "virtualmachineinstances-update-validator.kubevirt.io", path: "virtualmachineinstances-validate-update",
			group: group, versions: virtVersions, resource: "virtualmachineinstances", on: update,
			only: `request.userInfo.username != '` + ControllerUser + `'`, decide: s.validateVMI},
		{name: "migration-create-validator.kubevirt.io", path: "migrations-validate-create",
			group: group, versions: virtVersions, resource: "virtualmachineinstancemigrations", on: create, decide: s.validateMigration},
		{name: "migration-update-validator.kubevirt.io", path: "migrations-validate-update",
			group: group, versions: virtVersions, resource: "virtualmachineinstancemigrations", on: update, decide: s.validateMigration},
		{name: "migration-policy-validator.kubevirt.io", path: "migrationpolicies-validate",
			group: "migrations.kubevirt.io", versions: []string{"v1alpha1"}, resource: "migrationpolicies", on: createOrUpdate,
			scope: hooks.ClusterScope, decide: s.validateMigrationPolicy},
		{name: "network-attachment-definitions.patchbay.io", path: "network-attachment-definitions-validate",
			group: "k8s.cni.cncf.io", versions: []string{"v1"}, resource: "network-attachment-definitions", on: createOrUpdate,
			// The network controller reads every definition with the same rules, so one that slips through is only told later.
			optional: true, only: `request.userInfo.username != '` + ControllerUser + `'`, decide: s.validateDefinition},
		{name: "multi-networkpolicies.patchbay.io", path: "multi-networkpolicies-validate",
			group: "k8s.cni.cncf.io", versions: []string{"v1beta1"}, resource: "multi-networkpolicies", on: createOrUpdate,
			// What slips through allows nothing, and the policy's events say so.
			optional: true, decide: s.validateMultiPolicy},
		{name: "userdefinednetworks.patchbay.io", path: "userdefinednetworks-warn",
			group: ovnv1.GroupVersion.Group, versions: []string{"v1"}, resource: "userdefinednetworks", on: create,
			optional: true, decide: s.warnNetwork},
		{name: "clusteruserdefinednetworks.patchbay.io", path: "clusteruserdefinednetworks-warn",
			group: ovnv1.GroupVersion.Group, versions: []string{"v1"}, resource: "clusteruserdefinednetworks", on: create,
			scope: hooks.ClusterScope, optional: true, decide: s.warnNetwork},
		{name: "virt-launcher-eviction-interceptor.kubevirt.io", path: "launcher-eviction", versions: []string{"v1"}, resource: "pods/eviction",
			on: create, records: true, only: `request.name.startsWith('virt-launcher-')`, decide: s.intercept},
		{name: "services.patchbay.io", path: "services-warn", versions: []string{"v1"}, resource: "services", on: createOrUpdate,
			optional: true, only: serviceIsRelevant(), decide: s.warnService},
	}
}

const virtGroup = "kubevirt.io"

// serviceIsRelevant spares the calls for the Services that no warning speaks of.
func serviceIsRelevant() string {
	list := strings.Join(strings.Fields(fmt.Sprint(sidecarPorts)), ", ")
	return `has(object.spec.externalTrafficPolicy) && object.spec.externalTrafficPolicy == 'Local' || ` +
		`has(object.spec.ports) && object.spec.ports.exists(p, p.port in ` + list + ` || has(p.targetPort) && p.targetPort in ` + list + `)`
}

// Install applies the webhook configurations. base is where the API server reaches this Server ("https://172.30.0.1:9443") and
// authority the PEM certificates that its serving certificate is checked against.
func (s *Server) Install(ctx context.Context, config *rest.Config, base string, authority []byte) error {
	client, err := clientset.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("apply the webhook configurations: %w", err)
	}
	mutating := apply.MutatingWebhookConfiguration(configurationName)
	validating := apply.ValidatingWebhookConfiguration(configurationName)
	reach := func(w webhook) *apply.WebhookClientConfigApplyConfiguration {
		return apply.WebhookClientConfig().WithURL(strings.TrimSuffix(base, "/") + Prefix + w.path).WithCABundle(authority...)
	}
	for _, w := range s.webhooks() {
		target := reach(w)
		if w.mutating {
			mutating.WithWebhooks(w.mutatingConfiguration(target))
		} else {
			validating.WithWebhooks(w.validatingConfiguration(target))
		}
	}
	options := metav1.ApplyOptions{FieldManager: FieldOwner, Force: true}
	if _, err := client.MutatingWebhookConfigurations().Apply(ctx, mutating, options); err != nil {
		return fmt.Errorf("apply the mutating webhooks: %w", err)
	}
	if _, err := client.ValidatingWebhookConfigurations().Apply(ctx, validating, options); err != nil {
		return fmt.Errorf("apply the validating webhooks: %w", err)
	}
	if err := s.installMACs(ctx, client, reach, options); err != nil {
		return fmt.Errorf("apply the webhooks of the MAC pool: %w", err)
	}
	return nil
}

func (w webhook) rule() *apply.RuleWithOperationsApplyConfiguration {
	scope := w.scope
	if scope == "" {
		scope = hooks.NamespacedScope
	}
	return apply.RuleWithOperations().WithAPIGroups(w.group).WithAPIVersions(w.versions...).
		WithResources(w.resource).WithOperations(w.on...).WithScope(scope)
}

func (w webhook) failurePolicy() hooks.FailurePolicyType {
	if w.optional {
		return hooks.Ignore
	}
	return hooks.Fail
}

func (w webhook) mutatingConfiguration(target *apply.WebhookClientConfigApplyConfiguration) *apply.MutatingWebhookApplyConfiguration {
	configuration := apply.MutatingWebhook().WithName(w.name).WithClientConfig(target).WithRules(w.rule()).
		WithFailurePolicy(w.failurePolicy()).WithMatchPolicy(hooks.Equivalent).WithSideEffects(w.sideEffects()).
		WithTimeoutSeconds(timeout).WithAdmissionReviewVersions("v1")
	if w.only != "" {
		configuration.WithMatchConditions(w.condition())
	}
	if w.namespaces != nil {
		configuration.WithNamespaceSelector(selector(w.namespaces))
	}
	return configuration
}

func (w webhook) sideEffects() hooks.SideEffectClass {
	if w.records {
		return hooks.SideEffectClassNoneOnDryRun
	}
	return hooks.SideEffectClassNone
}

func selector(s *metav1.LabelSelector) *applymeta.LabelSelectorApplyConfiguration {
	applied := applymeta.LabelSelector().WithMatchLabels(s.MatchLabels)
	for _, r := range s.MatchExpressions {
		applied.WithMatchExpressions(applymeta.LabelSelectorRequirement().WithKey(r.Key).WithOperator(r.Operator).WithValues(r.Values...))
	}
	return applied
}

func (w webhook) validatingConfiguration(target *apply.WebhookClientConfigApplyConfiguration) *apply.ValidatingWebhookApplyConfiguration {
	configuration := apply.ValidatingWebhook().WithName(w.name).WithClientConfig(target).WithRules(w.rule()).
		WithFailurePolicy(w.failurePolicy()).WithMatchPolicy(hooks.Equivalent).WithSideEffects(w.sideEffects()).
		WithTimeoutSeconds(timeout).WithAdmissionReviewVersions("v1")
	if w.only != "" {
		configuration.WithMatchConditions(w.condition())
	}
	return configuration
}

func (w webhook) condition() *apply.MatchConditionApplyConfiguration {
	return apply.MatchCondition().WithName("relevant").WithExpression(w.only)
}
