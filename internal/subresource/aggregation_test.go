package subresource

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"patchbay/api/crds"
	"patchbay/internal/cluster/bootstrap"
	"patchbay/internal/home"
	"patchbay/test/apiserver"
	"patchbay/test/fakeagent"
)

var cluster1 *apiserver.Server

func TestMain(m *testing.M) { os.Exit(apiserver.Run(m, &cluster1)) }

const listen = apiserver.Address + ":9443"

// aggregate serves the API behind the real API server and returns an administrator's client.
func aggregate(t *testing.T) (context.Context, client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	if err := bootstrap.Apply(ctx, cluster1.Config, nil); err != nil {
		t.Fatal(err)
	}
	own := cluster1.As("patchbay:controller") // everything must work with the rights of the controller
	if err := crds.Apply(ctx, own); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(cluster1.Config, client.Options{Scheme: types(t)})
	if err != nil {
		t.Fatal(err)
	}
	controller, err := client.New(own, client.Options{Scheme: types(t)})
	if err != nil {
		t.Fatal(err)
	}
	kube, err := kubernetes.NewForConfig(own)
	if err != nil {
		t.Fatal(err)
	}
	front, err := FrontProxy(ctx, kube)
	if err != nil {
		t.Fatal(err)
	}
	agent := fakeagent.Start(t)
	serve(t, NewServer(Config{Client: controller, Authenticator: front, AgentTLS: agent.ClientTLS(t, "patchbay:controller"), Dial: agent.Dial}))
	for range 2 { // the second time nothing may stand in the way
		if err := Install(ctx, controller, Target{Address: netip.MustParseAddrPort(listen), Authority: cluster1.CA.PEM}); err != nil {
			t.Fatal(err)
		}
	}
	waitServed(ctx, t)
	return ctx, admin
}

func serve(t *testing.T, handler http.Handler) {
	t.Helper()
	issued, err := cluster1.CA.Issue("patchbay:controller", nil, ServiceName+"."+home.Namespace+".svc")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Certificate, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := cluster1.Listen(listen)
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{
		Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), // the API server's probes break connections off by the dozen
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() { web.Close(); <-done })
}

// waitServed asks until the API server passes requests on, which it does when its own check of the API has succeeded.
func waitServed(ctx context.Context, t *testing.T) {
	t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		code, body := ask(ctx, t, cluster1.Config, http.MethodGet, "/v1/version")
		if code == http.StatusOK {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the aggregated API is not served: %d %s", code, body)
		case <-poll.C:
		}
	}
}

// ask sends a request through the API server.
func ask(ctx context.Context, t *testing.T, config *rest.Config, method, path string) (code int, body string) {
	t.Helper()
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer web.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, config.Host+"/apis/"+Group+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := web.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func TestBehindTheAPIServer(t *testing.T) {
	ctx, admin := aggregate(t)
	populate(ctx, t, admin)
	t.Run("discovery", func(t *testing.T) { checkDiscovery(ctx, t) })
	t.Run("kubectl", func(t *testing.T) { checkKubectl(ctx, t) })
	t.Run("rights", func(t *testing.T) { checkRights(ctx, t, admin) })
	t.Run("start", func(t *testing.T) { checkStart(ctx, t, admin) })
	t.Run("console", func(t *testing.T) { checkConsoleStream(t) })
	t.Run("front door", func(t *testing.T) { checkFrontDoor(ctx, t) })
}

// populate makes a stopped VM "off" and a running instance "on".
func populate(ctx context.Context, t *testing.T, admin client.Client) {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	if err := admin.Create(ctx, node); err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fakeagent.Address}}
	if err := admin.Status().Update(ctx, node); err != nil {
		t.Fatal(err)
	}
	if err := admin.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	for _, object := range []client.Object{
		vm(t, "off", "spec: {runStrategy: Halted"+template),
		vm(t, "manual", "spec: {runStrategy: Manual"+template),
		vmi(t, "on", up+", conditions: [{type: AgentConnected, status: 'True'}]}"),
	} {
		if err := admin.Create(ctx, object); err != nil {
			t.Fatal(err)
		}
	}
}

func checkDiscovery(ctx context.Context, t *testing.T) {
	kube, err := kubernetes.NewForConfig(cluster1.Config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := kube.Discovery().ServerResourcesForGroupVersion(Group + "/v1")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == "virtualmachineinstances/console" }) {
		t.Errorf("discovery lacks virtualmachineinstances/console: %+v", list.APIResources)
	}
	raw, err := kube.RESTClient().Get().AbsPath("/apis").
		SetHeader("Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").DoRaw(ctx)
	if err != nil || !strings.Contains(string(raw), `"name":"`+Group+`"`) {
		t.Errorf("aggregated discovery lacks %s: %v", Group, err)
	}
}

func checkKubectl(ctx context.Context, t *testing.T) {
	for _, tc := range []struct {
		args, want string
	}{
		{"get --raw /apis/" + Group, `"preferredVersion":{"groupVersion":"subresources.kubevirt.io/v1","version":"v1"}`},
		{"get --raw /apis/" + Group + "/v1/version", `"gitVersion":"` + DefaultVersion + `"`},
		{"get --raw /apis/" + Group + "/v1/namespaces/shop/virtualmachines/off/expand-spec", `"kind":"VirtualMachine"`},
		{"get --raw /apis/" + Group + "/v1/namespaces/shop/virtualmachineinstances/on/guestosinfo", "GET /v1/namespaces/shop/virtualmachineinstances/on/guestosinfo"},
		{"get --raw /openapi/v3/apis/" + Group + "/v1", `"openapi":"3.0.0"`},
		{"get apiservice v1." + Group + " -o jsonpath={.status.conditions[0].status}", "True"},
		{"get vm -n shop off", "off"}, // the group must not take the short names of the objects
	} {
		out, problems, err := cluster1.Kubectl(ctx, nil, strings.Fields(tc.args)...)
		if err != nil || !strings.Contains(out, tc.want) {
			t.Errorf("kubectl %s: %q lacks %q: %v %s", tc.args, out, tc.want, err, problems)
		}
	}
}

// checkRights: a user without a role gets nothing, one with the published roles gets what they say.
func checkRights(ctx context.Context, t *testing.T, admin client.Client) {
	plain := cluster1.Plain()
	if code, _ := ask(ctx, t, plain, http.MethodGet, "/v1/version"); code != http.StatusOK {
		t.Errorf("version for every user: %d", code)
	}
	path := "/v1/namespaces/shop/virtualmachineinstances/on/"
	if code, body := ask(ctx, t, plain, http.MethodPut, path+"pause"); code != http.StatusForbidden {
		t.Errorf("pause without a role: %d %s", code, body)
	}
	bind(ctx, t, admin, "kubevirt.io:view")
	waitCode(ctx, t, plain, http.MethodGet, path+"guestosinfo", http.StatusOK)
	if code, _ := ask(ctx, t, plain, http.MethodPut, path+"pause"); code != http.StatusForbidden {
		t.Errorf("pause as a viewer: %d", code)
	}
	bind(ctx, t, admin, "kubevirt.io:edit")
	waitCode(ctx, t, plain, http.MethodPut, path+"pause", http.StatusOK)
	if code, _ := ask(ctx, t, plain, http.MethodPut, "/v1/namespaces/shop/virtualmachines/off/migrate"); code != http.StatusForbidden {
		t.Errorf("migrate as an editor: %d", code)
	}
}

func bind(ctx context.Context, t *testing.T, admin client.Client, role string) {
	t.Helper()
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "plain-", Namespace: "shop"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "plain"}},
	}
	if err := admin.Create(ctx, binding); err != nil {
		t.Fatal(err)
	}
}

// waitCode asks until the API server has taken up a new role.
func waitCode(ctx context.Context, t *testing.T, config *rest.Config, method, path string, want int) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		code, body := ask(ctx, t, config, method, path)
		if code == want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s %s: %d %s, want %d", method, path, code, body, want)
		case <-poll.C:
		}
	}
}

func checkStart(ctx context.Context, t *testing.T, admin client.Client) {
	const path = "/v1/namespaces/shop/virtualmachines/"
	if code, body := ask(ctx, t, cluster1.Config, http.MethodPut, path+"off/start"); code != http.StatusAccepted || body != "" {
		t.Errorf("start: %d %q, want 202 and no body", code, body)
	}
	started := &virtv1.VirtualMachine{}
	if err := admin.Get(ctx, key("off"), started); err != nil || *started.Spec.RunStrategy != virtv1.RunStrategyAlways {
		t.Errorf("run strategy %v: %v", started.Spec.RunStrategy, err)
	}
	code, body := ask(ctx, t, cluster1.Config, http.MethodPut, path+"off/start")
	var status metav1.Status
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatal(err)
	}
	equal(t, "start of a started VM", []any{409, metav1.StatusReasonConflict, conflictedName("off", "Always does not support manual start requests")},
		[]any{code, status.Reason, status.Message})

	if code, body := ask(ctx, t, cluster1.Config, http.MethodPut, path+"manual/start"); code != http.StatusAccepted {
		t.Fatalf("start: %d %s", code, body)
	}
	asked := &virtv1.VirtualMachine{}
	if err := admin.Get(ctx, key("manual"), asked); err != nil {
		t.Fatal(err)
	}
	equal(t, "requests", []virtv1.VirtualMachineStateChangeRequest{{Action: virtv1.StartRequest}}, asked.Status.StateChangeRequests)
	code, body = ask(ctx, t, cluster1.Config, http.MethodPut, path+"manual/start")
	if code != http.StatusConflict || !strings.Contains(body, "unable to complete request: stop/start already underway") {
		t.Errorf("start while a start waits: %d %s", code, body)
	}
}

func conflictedName(name, text string) string {
	return strings.Replace(conflicted(text), `"web"`, `"`+name+`"`, 1)
}

func checkConsoleStream(t *testing.T) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cluster1.CA.PEM)
	dialer := &websocket.Dialer{
		NetDialContext: cluster1.Dial, TLSClientConfig: &tls.Config{RootCAs: pool}, Subprotocols: []string{"plain.kubevirt.io"},
	}
	header := http.Header{"Authorization": {"Bearer " + cluster1.Config.BearerToken}}
	base := "wss" + strings.TrimPrefix(cluster1.Config.Host, "https") + "/apis/" + Group + "/v1/namespaces/shop/virtualmachineinstances/on/"
	for _, path := range []string{"console", "vnc", "portforward/22/tcp"} {
		checkEcho(t, base+path, header, dialer)
	}
}

// checkFrontDoor: whoever comes to the controller without the API server is nobody, whatever the headers say.
func checkFrontDoor(ctx context.Context, t *testing.T) {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cluster1.CA.PEM)
	forged, err := cluster1.CA.Issue("front-proxy-client", nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(forged.Certificate, forged.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, certificates := range map[string][]tls.Certificate{"no certificate": nil, "another authority's certificate": {pair}} {
		web := &http.Client{Transport: &http.Transport{DialContext: cluster1.Dial, TLSClientConfig: &tls.Config{
			RootCAs: pool, ServerName: ServiceName + "." + home.Namespace + ".svc", Certificates: certificates,
		}}}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+listen+"/apis/"+Group+"/v1/namespaces/shop/virtualmachines/off/expand-spec", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Remote-User", "admin")
		request.Header.Set("X-Remote-Group", "system:masters")
		response, err := web.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %d, want 401", name, response.StatusCode)
		}
	}
}
