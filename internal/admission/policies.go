package admission

import (
	"context"
	"errors"
	"net/http"
	"strings"

	multiv1beta1 "github.com/k8snetworkplumbingwg/multi-networkpolicy/pkg/apis/k8s.cni.cncf.io/v1beta1"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/internal/netconf"
	"patchbay/internal/netpolicy"
)

// definitionOf finds the configuration of a network attachment definition, "namespace/name".
type definitionOf func(key string) (config string, err error)

// ValidateMultiPolicy are the rules about a MultiNetworkPolicy, in which the API server does not look itself: what cannot be read, and
// what is never in force on the networks that it is for, is refused. A network that is not there yet is a warning.
func ValidateMultiPolicy(p *multiv1beta1.MultiNetworkPolicy, definition definitionOf) (causes Causes, warnings []string) {
	spec, err := netpolicy.PlainSpec(p)
	if err == nil {
		_, err = netpolicy.Parse(netpolicy.Key{}, nil, spec)
	}
	if err != nil {
		causes.invalid(field.NewPath("spec"), "%v", err)
	}
	at := field.NewPath("metadata", "annotations").Key(netpolicy.ForAnnotation)
	keys := netpolicy.For(p.Namespace, p.Annotations)
	if len(keys) == 0 {
		warnings = append(warnings, netpolicy.ErrNowhere.Error())
	}
	for _, key := range keys {
		config, err := definition(key)
		if err != nil {
			warnings = append(warnings, netpolicy.Missing(key).Error())
			continue
		}
		n, err := netconf.Parse(key, config)
		switch {
		case errors.Is(err, netconf.ErrOther):
			causes.invalid(at, "%s is a network of another CNI plugin, where no policy is in force; name networks of the overlay only", key)
		case err == nil:
			if err := netpolicy.CheckNetwork(key, n, spec); err != nil {
				causes.invalid(at, "%v", err)
			}
		}
	}
	return causes, warnings
}

func (s *Server) validateMultiPolicy(req *http.Request, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	old, p, err := objects[multiv1beta1.MultiNetworkPolicy](r)
	if err != nil {
		return nil, err
	}
	if old != nil && old.Annotations[netpolicy.ForAnnotation] == p.Annotations[netpolicy.ForAnnotation] && equality.Semantic.DeepEqual(old.Spec, p.Spec) {
		return answer(nil), nil // labels and finalizers; nothing may hold that up
	}
	p.Namespace = r.Namespace
	causes, warnings := ValidateMultiPolicy(p, s.definition(req.Context()))
	return answer(causes, warnings...), nil
}

func (s *Server) definition(ctx context.Context) definitionOf {
	return func(key string) (string, error) {
		namespace, name, _ := strings.Cut(key, "/")
		d := &nadv1.NetworkAttachmentDefinition{}
		err := s.config.Reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, d)
		return d.Spec.Config, err
	}
}
