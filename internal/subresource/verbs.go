package subresource

import (
	"net/http"
	"slices"
	"strings"
)

const (
	machines  = "virtualmachines"
	instances = "virtualmachineinstances"
	// cluster are the verbs that belong to no object.
	cluster = ""
)

// access says which of the published cluster roles may use a verb.
type access int

const (
	forEditors   access = iota // kubevirt.io:admin and kubevirt.io:edit
	forViewers                 // and kubevirt.io:view
	forMigrators               // kubevirt.io:migrate only
	forEveryone                // every authenticated user
)

// verb is one row of the API: discovery, routing, authorization and the published roles come from this table.
type verb struct {
	resource string // plural of the kind it belongs to
	path     string // below the object; {words} are parameters
	method   string
	access   access
	serve    func(*Server, http.ResponseWriter, *http.Request)
}

var verbs = []verb{
	{machines, "start", http.MethodPut, forEditors, (*Server).startMachine},
	{machines, "stop", http.MethodPut, forEditors, (*Server).stopMachine},
	{machines, "restart", http.MethodPut, forEditors, (*Server).restartMachine},
	{machines, "migrate", http.MethodPut, forMigrators, (*Server).migrateMachine},
	{machines, "evacuate/cancel", http.MethodPut, forEditors, (*Server).cancelEvacuation},
	{machines, "expand-spec", http.MethodGet, forViewers, (*Server).expandSpec},
	{machines, "portforward/{port}", http.MethodGet, forEditors, dotted(machines, (*Server).forwardToMachine)},
	{machines, "portforward/{port}/{protocol}", http.MethodGet, forEditors, dotted(machines, (*Server).forwardToMachine)},

	{instances, "console", http.MethodGet, forEditors, agentStream(checkConsole)},
	{instances, "vnc", http.MethodGet, forEditors, agentStream(checkScreen)},
	{instances, "portforward/{port}", http.MethodGet, forEditors, dotted(instances, agentStream(checkForward))},
	{instances, "portforward/{port}/{protocol}", http.MethodGet, forEditors, dotted(instances, agentStream(checkForward))},
	{instances, "vnc/screenshot", http.MethodGet, forViewers, agentStream(checkScreen)},
	{instances, "migrationprogress", http.MethodGet, forViewers, agentStream(checkRunning)},
	{instances, "addresses", http.MethodGet, forViewers, agentStream(checkRunning)},
	{instances, "guestosinfo", http.MethodGet, forViewers, (*Server).askGuest},
	{instances, "userlist", http.MethodGet, forViewers, (*Server).askGuest},
	{instances, "filesystemlist", http.MethodGet, forViewers, (*Server).askGuest},
	{instances, "pause", http.MethodPut, forEditors, agentStream(checkPause)},
	{instances, "unpause", http.MethodPut, forEditors, agentStream(checkUnpause)},
	{instances, "softreboot", http.MethodPut, forEditors, agentStream(checkSoftReboot)},
	{instances, "reset", http.MethodPut, forEditors, agentStream(checkRunning)},
	{instances, "freeze", http.MethodPut, forEditors, agentStream(checkFreeze)},
	{instances, "unfreeze", http.MethodPut, forEditors, agentStream(checkFreeze)},
	{instances, "evacuate/cancel", http.MethodPut, forEditors, (*Server).cancelEvacuation},

	{cluster, "version", http.MethodGet, forEveryone, (*Server).version},
	{cluster, "healthz", http.MethodGet, forEveryone, (*Server).health},
}

// subresource is the verb's name in roles and in the API server's own check of them: port and protocol are parameters.
func (v verb) subresource() string {
	name, _, _ := strings.Cut(v.path, "/{")
	return name
}

// rbacResources are the names that roles must list: the API server's own check sees the first path element only.
func (v verb) rbacResources() []string {
	first, _, deeper := strings.Cut(v.subresource(), "/")
	if deeper {
		return []string{v.name(), v.resource + "/" + first}
	}
	return []string{v.name()}
}

// name is what discovery lists, once each.
func (v verb) name() string {
	if v.resource == cluster {
		return v.subresource()
	}
	return v.resource + "/" + v.subresource()
}

// action is the authorization verb.
func (v verb) action() string {
	if v.method == http.MethodPut {
		return "update"
	}
	return "get"
}

// pattern is the verb's route in one version.
func (v verb) pattern(version string) string {
	base := v.method + " /apis/" + Group + "/" + version + "/"
	if v.resource == cluster {
		return base + v.path
	}
	return base + "namespaces/{namespace}/" + v.resource + "/{name}/" + v.path
}

// distinct are the verbs without those that differ in parameters only.
func distinct() []verb {
	var all []verb
	for _, v := range verbs {
		if !slices.ContainsFunc(all, func(o verb) bool { return o.name() == v.name() }) {
			all = append(all, v)
		}
	}
	return all
}

func (s *Server) routes() {
	for _, version := range versions {
		for _, v := range verbs {
			s.mux.HandleFunc(v.pattern(version), s.guarded(v))
		}
		s.mux.HandleFunc("PUT /apis/"+Group+"/"+version+"/namespaces/{namespace}/expand-vm-spec", s.authenticated(s.expandGivenSpec))
	}
	s.discovery()
	s.openAPI()
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { refuse(w, notServed()) })
}
