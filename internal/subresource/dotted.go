package subresource

import (
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// dotted lets a tunnel's target be written NAME.NAMESPACE, as published ssh configurations have it and clients since 1.7 pass it on unread:
// they ask for a machine of that whole name in their own namespace. One that has such a name goes first; the right to the other
// namespace's machine is checked as if it had been asked for.
func dotted(resource string, serve func(*Server, http.ResponseWriter, *http.Request)) func(*Server, http.ResponseWriter, *http.Request) {
	asked := verb{resource: resource, path: "portforward/{port}", method: http.MethodGet, access: forEditors}
	return func(s *Server, w http.ResponseWriter, r *http.Request) {
		other, ok := s.elsewhere(resource, r)
		if !ok {
			serve(s, w, r)
			return
		}
		if err := s.authorize(other, asked, callerOf(r)); err != nil {
			refuse(w, err)
			return
		}
		serve(s, w, other)
	}
}

// elsewhere is the request for the machine NAME in NAMESPACE, if none is called NAME.NAMESPACE where the request looks.
func (s *Server) elsewhere(resource string, r *http.Request) (*http.Request, bool) {
	name := r.PathValue("name")
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || dot == len(name)-1 {
		return nil, false
	}
	var err error
	if resource == machines {
		_, err = s.machine(r.Context(), objectKey(r))
	} else {
		_, err = s.instance(r.Context(), objectKey(r))
	}
	if !apierrors.IsNotFound(err) {
		return nil, false
	}
	other := r.Clone(r.Context())
	other.SetPathValue("name", name[:dot])
	other.SetPathValue("namespace", name[dot+1:])
	return other, true
}
