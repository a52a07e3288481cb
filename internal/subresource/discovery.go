package subresource

import (
	"cmp"
	"net/http"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// discovery serves what clients and the API server ask to learn which verbs there are. The API server makes the aggregated form
// itself out of these.
func (s *Server) discovery() {
	s.describe("/apis", metav1.APIGroupList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"},
		Groups:   []metav1.APIGroup{group()},
	})
	own := group()
	own.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
	s.describe("/apis/"+Group, own)
	for _, version := range versions {
		s.describe("/apis/"+Group+"/"+version, metav1.APIResourceList{
			TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
			GroupVersion: Group + "/" + version,
			APIResources: resources(),
		})
	}
}

func (s *Server) describe(path string, document any) {
	serve := func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, document) }
	s.mux.HandleFunc("GET "+path, s.authenticated(serve))
}

func group() metav1.APIGroup {
	g := metav1.APIGroup{Name: Group}
	for _, version := range versions {
		g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: Group + "/" + version, Version: version})
	}
	g.PreferredVersion = g.Versions[0]
	return g
}

func resources() []metav1.APIResource {
	var all []metav1.APIResource
	for _, v := range distinct() {
		all = append(all, metav1.APIResource{
			Name: v.name(), Namespaced: v.resource != cluster, Kind: v.kind(), Verbs: metav1.Verbs{v.action()},
		})
	}
	slices.SortFunc(all, func(a, b metav1.APIResource) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// kind is what discovery calls the answer of a verb.
func (v verb) kind() string {
	switch v.resource {
	case machines:
		return "VirtualMachine"
	case instances:
		return "VirtualMachineInstance"
	default:
		return "Status"
	}
}
