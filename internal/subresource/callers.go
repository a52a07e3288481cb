package subresource

import (
	"context"
	"fmt"
	"net/http"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
)

// Where every Kubernetes API server publishes how it introduces itself to aggregated APIs.
const (
	introNamespace = "kube-system"
	introName      = "extension-apiserver-authentication"
)

// FrontProxy makes the authenticator of an aggregated API: a request counts when it comes with the API server's own client
// certificate, and then its headers say who asks. The API server's authority and names are followed until ctx ends.
func FrontProxy(ctx context.Context, kube kubernetes.Interface) (authenticator.Request, error) {
	authority, err := dynamiccertificates.NewDynamicCAFromConfigMapController("front-proxy", introNamespace, introName, "requestheader-client-ca-file", kube)
	if err != nil {
		return nil, fmt.Errorf("follow the API server's front-proxy authority: %w", err)
	}
	headers := headerrequest.NewRequestHeaderAuthRequestController(introName, introNamespace, kube,
		"requestheader-username-headers", "requestheader-uid-headers", "requestheader-group-headers",
		"requestheader-extra-headers-prefix", "requestheader-allowed-names")
	for _, c := range []interface{ RunOnce(context.Context) error }{authority, headers} {
		if err := c.RunOnce(ctx); err != nil {
			return nil, fmt.Errorf("read %s/%s, in which the API server introduces itself: %w", introNamespace, introName, err)
		}
	}
	go authority.Run(ctx, 1)
	go headers.Run(ctx, 1)
	provide := func(f func() []string) headerrequest.StringSliceProvider {
		return headerrequest.StringSliceProviderFunc(f)
	}
	return headerrequest.NewDynamicVerifyOptionsSecure(authority.VerifyOptions, provide(headers.AllowedClientNames),
		provide(headers.UsernameHeaders), provide(headers.UIDHeaders), provide(headers.GroupHeaders), provide(headers.ExtraHeaderPrefixes)), nil
}

// authenticated serves only requests that the API server vouches for.
func (s *Server) authenticated(serve http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := s.caller(r); err != nil {
			refuse(w, err)
			return
		}
		serve(w, r)
	}
}

func (s *Server) caller(r *http.Request) (user.Info, error) {
	response, ok, err := s.Authenticator.AuthenticateRequest(r)
	if err != nil {
		s.Log.Warn("refused a request that does not come from the API server", "from", r.RemoteAddr, "error", err)
	}
	if err != nil || !ok {
		return nil, apierrors.NewUnauthorized("Unauthorized: send the request to the API server, which passes it on")
	}
	return response.User, nil
}

// guarded serves a verb to those who may use it.
func (s *Server) guarded(v verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller, err := s.caller(r)
		if err == nil {
			err = s.authorize(r, v, caller)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		v.serve(s, w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
	}
}

// callerKey is where a guarded request carries who asks. Authentication cannot be repeated: it takes the headers away.
type callerKey struct{}

func callerOf(r *http.Request) user.Info {
	caller, _ := r.Context().Value(callerKey{}).(user.Info)
	return caller
}

// authorize asks the API server. It asked itself before it passed the request on, but only this question names the whole path.
func (s *Server) authorize(r *http.Request, v verb, caller user.Info) error {
	if v.access == forEveryone {
		return nil
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: caller.GetName(), UID: caller.GetUID(), Groups: caller.GetGroups(), Extra: extra(caller),
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: v.action(), Group: Group, Version: versions[0], Resource: v.resource, Subresource: v.subresource(),
			Namespace: r.PathValue("namespace"), Name: r.PathValue("name"),
		},
	}}
	if err := s.Client.Create(r.Context(), review); err != nil {
		return fmt.Errorf("ask the API server whether %s may %s %s: %w", caller.GetName(), v.action(), v.name(), err)
	}
	if !review.Status.Allowed {
		return apierrors.NewForbidden(schema.GroupResource{Group: Group, Resource: v.name()}, r.PathValue("name"),
			published(fmt.Sprintf("User %q cannot %s resource %q in API group %q in the namespace %q",
				caller.GetName(), v.action(), v.name(), Group, r.PathValue("namespace"))))
	}
	return nil
}

func extra(caller user.Info) map[string]authorizationv1.ExtraValue {
	all := map[string]authorizationv1.ExtraValue{}
	for key, values := range caller.GetExtra() {
		all[key] = values
	}
	return all
}
