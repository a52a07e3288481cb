package subresource

import (
	"net/http"
	"strings"
)

// openAPI serves descriptions of the verbs. They hold no types: what a verb takes and gives is too small to need one.
func (s *Server) openAPI() {
	s.describe("/openapi/v2", map[string]any{
		"swagger": "2.0",
		"info":    s.info(),
		"paths":   s.paths(versions, swaggerParameter),
	})
	index := map[string]any{}
	for _, version := range versions {
		path := "apis/" + Group + "/" + version
		index[path] = map[string]string{"serverRelativeURL": "/openapi/v3/" + path}
		s.describe("/openapi/v3/"+path, map[string]any{
			"openapi": "3.0.0",
			"info":    s.info(),
			"paths":   s.paths([]string{version}, parameter),
		})
	}
	s.describe("/openapi/v3", map[string]any{"paths": index})
}

func (s *Server) info() map[string]string {
	return map[string]string{"title": "Verbs of virtual machines", "version": s.release()}
}

func (s *Server) paths(of []string, describe func(name string) map[string]any) map[string]any {
	all := map[string]any{}
	for _, version := range of {
		for _, v := range verbs {
			method, path, _ := strings.Cut(v.pattern(version), " ")
			item := map[string]any{strings.ToLower(method): map[string]any{
				"operationId": operationID(version, v),
				"responses":   map[string]any{"default": map[string]string{"description": "the verb was carried out or asked for"}},
			}}
			var parameters []any
			for _, name := range parametersOf(path) {
				parameters = append(parameters, describe(name))
			}
			if parameters != nil {
				item["parameters"] = parameters
			}
			all[path] = item
		}
	}
	return all
}

// operationID is unique in a document: "v1updateVirtualmachinesStart".
func operationID(version string, v verb) string {
	id := version + v.action()
	for word := range strings.FieldsFuncSeq(v.resource+"/"+v.path, func(r rune) bool { return strings.ContainsRune("/-{}", r) }) {
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

func parametersOf(path string) []string {
	var names []string
	for part := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(part, "{") {
			names = append(names, strings.Trim(part, "{}"))
		}
	}
	return names
}

func swaggerParameter(name string) map[string]any {
	return map[string]any{"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true}
}

func parameter(name string) map[string]any {
	return map[string]any{"name": name, "in": "path", "required": true, "schema": map[string]string{"type": "string"}}
}

// release is the version that clients compare with their own.
func (s *Server) release() string {
	if s.Version == "" {
		return DefaultVersion
	}
	return s.Version
}

// version answers clients that want to know which release they speak to.
func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, versionInfo(s.release()))
}

// health answers whether the machines' API works; whoever can ask has reached all of it that does not depend on a node.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"apiserver": map[string]string{"connectivity": "ok", "version": s.release()}})
}
