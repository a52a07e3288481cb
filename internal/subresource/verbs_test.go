package subresource

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiversion "k8s.io/apimachinery/pkg/version"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	template = ", template: {spec: {domain: {devices: {}}}}}"
	up       = "status: {phase: Running, nodeName: node-1, interfaces: [{name: default}]"
)

func key(name string) client.ObjectKey { return client.ObjectKey{Namespace: "shop", Name: name} }

func TestStartWritesTheFieldThatTheUserUses(t *testing.T) {
	w := newWorld(t, "",
		vm(t, "new", "spec: {runStrategy: Halted"+template), vm(t, "old", "spec: {running: false"+template),
		vm(t, "asked", "spec: {runStrategy: Manual"+template))
	for _, name := range []string{"new", "old", "asked"} {
		code, _, body := w.do(t, "alice", "PUT", "/v1/namespaces/shop/virtualmachines/"+name+"/start", "")
		if code != 202 || body != "" {
			t.Errorf("%s: %d %q, want 202 and no body", name, code, body)
		}
	}
	got := map[string]string{}
	for _, name := range []string{"new", "old", "asked"} {
		object := &virtv1.VirtualMachine{}
		if err := w.client.Get(t.Context(), key(name), object); err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(map[string]any{"running": object.Spec.Running, "strategy": object.Spec.RunStrategy, "requests": object.Status.StateChangeRequests})
		got[name] = string(text)
	}
	equal(t, "the VMs", map[string]string{
		"new":   `{"requests":null,"running":null,"strategy":"Always"}`,
		"old":   `{"requests":null,"running":true,"strategy":null}`,
		"asked": `{"requests":[{"action":"Start"}],"running":null,"strategy":"Manual"}`,
	}, got)
}

func TestBodies(t *testing.T) {
	const path = "/v1/namespaces/shop/virtualmachines/web/start"
	for name, body := range map[string]string{
		"JSON": `{"paused":true,"dryRun":["All"]}`, "YAML": "paused: true\ndryRun: [All]\n",
	} {
		w := newWorld(t, "", vm(t, "web", "spec: {runStrategy: Halted"+template))
		if code, _, text := w.do(t, "alice", "PUT", path, body); code != 202 {
			t.Errorf("%s: %d %s", name, code, text)
		}
		object := &virtv1.VirtualMachine{}
		if err := w.client.Get(t.Context(), key("web"), object); err != nil {
			t.Fatal(err)
		}
		if len(object.Status.StateChangeRequests) > 0 || *object.Spec.RunStrategy != virtv1.RunStrategyHalted {
			t.Errorf("%s: a dry run changed the VM: %+v", name, object.Status)
		}
	}
	w := newWorld(t, "", vm(t, "web", "spec: {runStrategy: Halted"+template))
	code, kind, text := w.do(t, "alice", "PUT", path, "{nonsense")
	if want := "Can not unmarshal Request body to struct, error: "; code != 400 || !strings.HasPrefix(message(t, kind, text), want) {
		t.Errorf("nonsense: %d %s", code, text)
	}
}

func TestStopAndRestartSetTheGracePeriod(t *testing.T) {
	w := newWorld(t, "",
		vm(t, "a", "spec: {runStrategy: Manual"+template), vmi(t, "a", up+"}"),
		vm(t, "b", "spec: {runStrategy: Always"+template), vmi(t, "b", up+"}"))
	for path, body := range map[string]string{"a/stop": `{"gracePeriod":5}`, "b/restart": `{"gracePeriodSeconds":0}`} {
		if code, _, text := w.do(t, "alice", "PUT", "/v1alpha3/namespaces/shop/virtualmachines/"+path, body); code != 202 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	for name, want := range map[string]int64{"a": 5, "b": 1} {
		object := &virtv1.VirtualMachineInstance{}
		if err := w.client.Get(t.Context(), key(name), object); err != nil {
			t.Fatal(err)
		}
		if got := object.Spec.TerminationGracePeriodSeconds; got == nil || *got != want {
			t.Errorf("%s: grace period %v, want %d", name, got, want)
		}
	}
}

func TestMigrate(t *testing.T) {
	w := newWorld(t, "",
		vm(t, "web", "spec: {runStrategy: Always"+template), vmi(t, "web", up+"}"), vm(t, "off", "spec: {runStrategy: Halted"+template))
	if code, _, text := w.do(t, "alice", "PUT", "/v1/namespaces/shop/virtualmachines/web/migrate", `{"addedNodeSelector":{"zone":"a"}}`); code != 202 {
		t.Fatalf("%d %s", code, text)
	}
	var all virtv1.VirtualMachineInstanceMigrationList
	if err := w.client.List(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Items) != 1 || !strings.HasPrefix(all.Items[0].GenerateName, "kubevirt-migrate-vm-") {
		t.Fatalf("migrations %+v", all.Items)
	}
	equal(t, "migration", virtv1.VirtualMachineInstanceMigrationSpec{VMIName: "web", AddedNodeSelector: map[string]string{"zone": "a"}}, all.Items[0].Spec)

	code, kind, text := w.do(t, "alice", "PUT", "/v1/namespaces/shop/virtualmachines/off/migrate", "")
	equal(t, "a stopped VM", []any{409, `Operation cannot be fulfilled on virtualmachine.kubevirt.io "off": VM is not running`}, []any{code, message(t, kind, text)})
}

// refusal is a request and the answer that clients know.
type refusal struct {
	name, vmi, request string
	code               int
	want               string
}

func TestRefusals(t *testing.T) {
	const is = `Operation cannot be fulfilled on virtualmachineinstance.kubevirt.io "web": `
	const paused = up + ", conditions: [{type: Paused, status: 'True'}]}"
	for _, tc := range []refusal{
		{"console of nothing", "", "GET console", 404, `virtualmachineinstance.kubevirt.io "web" not found`},
		{"console before it runs", "status: {phase: Scheduled}", "GET console", 400, "VMI is not running"},
		{"console of a failed one", "status: {phase: Failed}", "GET console", 409, is + "VMI is in failed status"},
		{"console that is switched off", "spec: {domain: {devices: {autoattachSerialConsole: false}}}\n" + up + "}", "GET console", 400, "No serial consoles are present."},
		{"screen that is switched off", "spec: {domain: {devices: {autoattachGraphicsDevice: false}}}\n" + up + "}", "GET vnc", 400, "No graphics devices are present."},
		{"screen before it runs", "status: {phase: Pending}", "GET vnc", 400, "VMI is not running"},
		{"port of a paused one", paused, "GET portforward/22", 409, is + "VMI is paused"},
		{"port without NIC", "status: {phase: Running, nodeName: node-1}", "GET portforward/22/tcp", 400, "no network interfaces are present"},
		{"pause twice", paused, "PUT pause", 409, is + "VMI is already paused"},
		{"pause with a probe", "spec: {domain: {devices: {}}, livenessProbe: {tcpSocket: {port: 80}}}\n" + up + "}", "PUT pause", 403,
			`virtualmachineinstance.kubevirt.io "web" is forbidden: Pausing VMIs with a non-GuestAgentPing LivenessProbe is not supported`},
		{"pause before it runs", "status: {phase: Scheduled}", "PUT pause", 409, is + "VMI is not running"},
		{"unpause", up + "}", "PUT unpause", 409, is + "VMI is not paused"},
		{"reset", "status: {phase: Succeeded}", "PUT reset", 409, is + "VMI is not running"},
		{"soft reboot without means", "spec: {domain: {devices: {}, features: {acpi: {enabled: false}}}}\n" + up + "}", "PUT softreboot", 409,
			is + "VMI neither have the agent connected nor the ACPI feature enabled"},
		{"soft reboot of a paused one", paused, "PUT softreboot", 409, is + "VMI is paused"},
		{"guest before it runs", "status: {phase: Scheduled}", "GET guestosinfo", 500, is + "VMI is not running"},
		{"guest without agent", up + "}", "GET userlist", 500, is + "VMI does not have guest agent connected"},
		{"file systems without agent", up + "}", "GET filesystemlist", 500, is + "VMI does not have guest agent connected"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var objects []client.Object
			if tc.vmi != "" {
				objects = append(objects, vmi(t, "web", tc.vmi))
			}
			w := newWorld(t, "", objects...)
			method, path, _ := strings.Cut(tc.request, " ")
			code, kind, body := w.do(t, "alice", method, "/v1/namespaces/shop/virtualmachineinstances/web/"+path, "")
			equal(t, "answer", []any{tc.code, tc.want}, []any{code, message(t, kind, body)})
			if tc.code == 500 && !strings.HasPrefix(kind, "text/plain") {
				t.Errorf("content type %s, want plain text", kind)
			}
			if len(w.agent.Seen) > 0 {
				t.Error("the agent was asked")
			}
		})
	}
}

func TestMachineRefusals(t *testing.T) {
	w := newWorld(t, "", vm(t, "off", "spec: {runStrategy: Halted"+template), vm(t, "typed", "spec: {runStrategy: Halted, instancetype: {name: x}"+template))
	for _, tc := range []refusal{
		{request: "PUT nobody/start", code: 404, want: `virtualmachine.kubevirt.io "nobody" not found`},
		{request: "GET nobody/portforward/22", code: 404, want: `virtualmachine.kubevirt.io "nobody" not found`},
		{request: "GET off/portforward/22", code: 409, want: `Operation cannot be fulfilled on virtualmachine.kubevirt.io "off": VMI is not started`},
		{request: "GET typed/expand-spec", code: 400, want: "this cluster serves no instance types or preferences; remove them from the VM and set CPU and memory instead"},
		{request: "GET off/start", code: 404, want: "the server could not find the requested resource"},
		{request: "PUT off/ssh", code: 404, want: "the server could not find the requested resource"},
	} {
		method, path, _ := strings.Cut(tc.request, " ")
		code, kind, body := w.do(t, "alice", method, "/v1/namespaces/shop/virtualmachines/"+path, "")
		equal(t, tc.request, []any{tc.code, tc.want}, []any{code, message(t, kind, body)})
	}
}

func TestAgentIsAsked(t *testing.T) {
	w := newWorld(t, "",
		vm(t, "web", "spec: {runStrategy: Always"+template),
		vmi(t, "web", up+", conditions: [{type: AgentConnected, status: 'True'}]}"),
		vmi(t, "paused", up+", conditions: [{type: Paused, status: 'True'}]}"))
	for request, want := range map[string]string{
		"PUT virtualmachineinstances/web/pause":                    "PUT /v1/namespaces/shop/virtualmachineinstances/web/pause",
		"PUT virtualmachineinstances/paused/unpause":               "PUT /v1/namespaces/shop/virtualmachineinstances/paused/unpause",
		"PUT virtualmachineinstances/web/softreboot":               "PUT /v1/namespaces/shop/virtualmachineinstances/web/softreboot",
		"PUT virtualmachineinstances/web/reset":                    "PUT /v1/namespaces/shop/virtualmachineinstances/web/reset",
		"GET virtualmachineinstances/web/guestosinfo":              "GET /v1/namespaces/shop/virtualmachineinstances/web/guestosinfo",
		"GET virtualmachineinstances/web/userlist":                 "GET /v1/namespaces/shop/virtualmachineinstances/web/userlist",
		"GET virtualmachineinstances/web/filesystemlist":           "GET /v1/namespaces/shop/virtualmachineinstances/web/filesystemlist",
		"GET virtualmachineinstances/web/portforward/22":           "GET /v1/namespaces/shop/virtualmachineinstances/web/portforward/22/tcp",
		"GET virtualmachines/web/portforward/53/udp":               "GET /v1/namespaces/shop/virtualmachineinstances/web/portforward/53/udp",
		"GET virtualmachineinstances/web/vnc?preserveSession=true": "GET /v1/namespaces/shop/virtualmachineinstances/web/vnc?preserveSession=true",
	} {
		method, path, _ := strings.Cut(request, " ")
		code, _, body := w.do(t, "alice", method, "/v1/namespaces/shop/"+path, "")
		equal(t, request, []any{200, want}, []any{code, body})
		seen := <-w.agent.Seen
		if name := seen.TLS.PeerCertificates[0].Subject.CommonName; name != "patchbay:controller" {
			t.Errorf("%s: the agent was asked by %s", request, name)
		}
		if seen.Header.Get("X-Remote-User") != "" {
			t.Errorf("%s: the caller's headers reached the agent", request)
		}
	}
}

// A tunnel's target may carry its namespace behind a dot.
func TestDottedTargets(t *testing.T) {
	objects := []client.Object{vm(t, "web", "spec: {runStrategy: Always"+template), vmi(t, "web", up+"}"), vmi(t, "web.x", up+"}")}
	w := newWorld(t, "", objects...)
	for request, want := range map[string]string{
		"/v1/namespaces/home/virtualmachines/web.shop/portforward/22":           "GET /v1/namespaces/shop/virtualmachineinstances/web/portforward/22/tcp",
		"/v1/namespaces/home/virtualmachineinstances/web.shop/portforward/22":   "GET /v1/namespaces/shop/virtualmachineinstances/web/portforward/22/tcp",
		"/v1/namespaces/shop/virtualmachineinstances/web.x/portforward/22":      "GET /v1/namespaces/shop/virtualmachineinstances/web.x/portforward/22/tcp",
		"/v1/namespaces/home/virtualmachineinstances/web.x.shop/portforward/22": "GET /v1/namespaces/shop/virtualmachineinstances/web.x/portforward/22/tcp",
	} {
		code, _, body := w.do(t, "alice", "GET", request, "")
		equal(t, request, []any{200, want}, []any{code, body})
		<-w.agent.Seen
	}
	code, kind, body := w.do(t, "alice", "GET", "/v1/namespaces/home/virtualmachines/nobody.shop/portforward/22", "")
	equal(t, "a stranger's name", []any{404, `virtualmachine.kubevirt.io "nobody" not found`}, []any{code, message(t, kind, body)})
	w = newWorld(t, "get virtualmachines/portforward in shop", objects...)
	if code, _, body := w.do(t, "alice", "GET", "/v1/namespaces/home/virtualmachines/web.shop/portforward/22", ""); code != 403 {
		t.Errorf("without the right to the other namespace: %d %s", code, body)
	}
}

func TestStreams(t *testing.T) {
	w := newWorld(t, "", vm(t, "web", "spec: {runStrategy: Always"+template), vmi(t, "web", up+"}"))
	base := "ws" + strings.TrimPrefix(w.server.URL, "http") + "/apis/" + Group + "/v1/namespaces/shop/"
	for _, path := range []string{
		"virtualmachineinstances/web/console", "virtualmachineinstances/web/vnc",
		"virtualmachineinstances/web/portforward/22", "virtualmachines/web/portforward/53/udp",
	} {
		t.Run(path, func(t *testing.T) {
			checkEcho(t, base+path, http.Header{"X-Remote-User": {"alice"}}, &websocket.Dialer{Subprotocols: []string{"plain.kubevirt.io"}})
		})
	}
}

func TestAgentThatIsAway(t *testing.T) {
	w := newWorld(t, "", vmi(t, "web", up+"}"), vmi(t, "lost", "status: {phase: Running, nodeName: node-9, interfaces: [{name: a}]}"))
	w.agent.Stop()
	code, kind, body := w.do(t, "alice", "PUT", "/v1/namespaces/shop/virtualmachineinstances/web/pause", "")
	if want := "the agent of node node-1 does not answer"; code != 500 || !strings.Contains(message(t, kind, body), want) {
		t.Errorf("%d %s, want 500 with %q", code, body, want)
	}
	code, kind, body = w.do(t, "alice", "GET", "/v1/namespaces/shop/virtualmachineinstances/lost/console", "")
	if want := "find the node of shop/lost"; code != 500 || !strings.Contains(message(t, kind, body), want) {
		t.Errorf("%d %s, want 500 with %q", code, body, want)
	}
}

func TestCallers(t *testing.T) {
	w := newWorld(t, "get virtualmachineinstances/portforward", vmi(t, "web", up+"}"))
	code, kind, body := w.do(t, "", "GET", "/v1/namespaces/shop/virtualmachineinstances/web/console", "")
	equal(t, "nobody", []any{401, "Unauthorized: send the request to the API server, which passes it on"}, []any{code, message(t, kind, body)})

	code, kind, body = w.do(t, "bob", "PUT", "/v1/namespaces/shop/virtualmachineinstances/web/pause", "")
	equal(t, "a stranger", []any{403, `virtualmachineinstances/pause.subresources.kubevirt.io "web" is forbidden: ` +
		`User "bob" cannot update resource "virtualmachineinstances/pause" in API group "subresources.kubevirt.io" in the namespace "shop"`},
		[]any{code, message(t, kind, body)})

	code, kind, body = w.do(t, "alice", "GET", "/v1/namespaces/shop/virtualmachineinstances/web/portforward/22/tcp", "")
	if code != 403 || !strings.Contains(message(t, kind, body), "virtualmachineinstances/portforward") {
		t.Errorf("port and protocol must not be part of what is authorized: %d %s", code, body)
	}
	if code, _, _ := w.do(t, "bob", "GET", "/v1/version", ""); code != 200 {
		t.Errorf("version for everyone: %d", code)
	}
}

func TestDescriptions(t *testing.T) {
	w := newWorld(t, "")
	var list metav1.APIResourceList
	_, _, body := w.do(t, "alice", "GET", "/v1", "")
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, r := range list.APIResources {
		names[r.Name] = r.Verbs[0]
	}
	for name, verb := range map[string]string{"virtualmachines/start": "update", "virtualmachineinstances/portforward": "get", "version": "get"} {
		if names[name] != verb {
			t.Errorf("%s: verb %q, want %q", name, names[name], verb)
		}
	}
	var info apiversion.Info
	_, _, body = w.do(t, "alice", "GET", "/v1alpha3/version", "")
	if err := json.Unmarshal([]byte(body), &info); err != nil || info.GitVersion != DefaultVersion {
		t.Errorf("version %+v: %v", info, err)
	}
	if code, _, body := w.do(t, "alice", "GET", "/v1/healthz", ""); code != 200 || !strings.Contains(body, `"connectivity":"ok"`) {
		t.Errorf("health: %d %s", code, body)
	}
}

func TestExpandSpec(t *testing.T) {
	w := newWorld(t, "", vm(t, "web", "spec: {runStrategy: Halted"+template))
	_, _, stored := w.do(t, "alice", "GET", "/v1/namespaces/shop/virtualmachines/web/expand-spec", "")
	_, _, given := w.do(t, "alice", "PUT", "/v1/namespaces/shop/expand-vm-spec", "spec: {runStrategy: Halted"+template)
	for name, body := range map[string]string{"stored": stored, "given": given} {
		var object virtv1.VirtualMachine
		if err := json.Unmarshal([]byte(body), &object); err != nil || object.Kind != "VirtualMachine" || object.APIVersion != "kubevirt.io/v1" ||
			*object.Spec.RunStrategy != virtv1.RunStrategyHalted {
			t.Errorf("%s: %v %s", name, err, body)
		}
	}
}

func TestCancelEvacuation(t *testing.T) {
	w := newWorld(t, "", vmi(t, "web", up+", evacuationNodeName: node-1}"))
	if code, _, body := w.do(t, "alice", "PUT", "/v1/namespaces/shop/virtualmachineinstances/web/evacuate/cancel", ""); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	object := &virtv1.VirtualMachineInstance{}
	if err := w.client.Get(t.Context(), key("web"), object); err != nil || object.Status.EvacuationNodeName != "" {
		t.Errorf("evacuationNodeName %q: %v", object.Status.EvacuationNodeName, err)
	}
}
