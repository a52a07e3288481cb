package subresource

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"patchbay/test/fakeagent"
)

func types(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, virtv1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// world is a server with a fake API server behind it and a fake agent on node-1.
type world struct {
	client client.Client
	server *httptest.Server
	agent  *fakeagent.Agent
}

// newWorld holds objects; alice may do everything that forbid does not name.
func newWorld(t *testing.T, forbid string, objects ...client.Object) *world {
	t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "node-1"}, {Type: corev1.NodeInternalIP, Address: fakeagent.Address}}
	w := &world{agent: fakeagent.Start(t)}
	known := types(t)
	// The fake's own tracker keeps managed fields and cannot do so for unsigned numbers, of which these types have some.
	tracker := clienttesting.NewObjectTracker(known, serializer.NewCodecFactory(known).UniversalDecoder())
	w.client = fake.NewClientBuilder().WithScheme(known).WithObjectTracker(tracker).WithObjects(append(objects, node)...).
		WithStatusSubresource(&virtv1.VirtualMachine{}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if review, ok := o.(*authorizationv1.SubjectAccessReview); ok {
				a := review.Spec.ResourceAttributes
				asked := a.Verb + " " + a.Resource + "/" + a.Subresource
				review.Status.Allowed = review.Spec.User == "alice" && asked != forbid && asked+" in "+a.Namespace != forbid
				return nil
			}
			return c.Create(ctx, o, opts...)
		}}).Build()
	api := NewServer(Config{
		Client: w.client, AgentTLS: w.agent.ClientTLS(t, "patchbay:controller"), Dial: w.agent.Dial,
		Authenticator: authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
			name := r.Header.Get("X-Remote-User")
			r.Header.Del("X-Remote-User") // as the real one does
			return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, name != "", nil
		}),
	})
	w.server = httptest.NewServer(api)
	t.Cleanup(w.server.Close)
	return w
}

// do sends a request as a user and returns status code, content type and body.
func (w *world) do(t *testing.T, user, method, path, body string) (code int, contentType, answer string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, w.server.URL+"/apis/"+Group+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		request.Header.Set("X-Remote-User", user)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header.Get("Content-Type"), string(text)
}

// message is the text of a Status, or the body when it is none.
func message(t *testing.T, contentType, body string) string {
	t.Helper()
	if contentType != "application/json" {
		return body
	}
	var s metav1.Status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if s.Kind != "Status" || s.APIVersion != "v1" {
		t.Errorf("the answer is no Status: %s", body)
	}
	return s.Message
}

func vm(t *testing.T, name, text string) *virtv1.VirtualMachine {
	object := parse[virtv1.VirtualMachine](t, text)
	object.Name, object.Namespace = name, "shop"
	return object
}

func vmi(t *testing.T, name, text string) *virtv1.VirtualMachineInstance {
	object := parse[virtv1.VirtualMachineInstance](t, text)
	object.Name, object.Namespace = name, "shop"
	return object
}

// checkEcho sends a message through a websocket and wants it back unchanged.
func checkEcho(t *testing.T, url string, header http.Header, dialer *websocket.Dialer) {
	t.Helper()
	conn, response, err := dialer.DialContext(t.Context(), url, header)
	if err != nil {
		body := ""
		if response != nil {
			text, _ := io.ReadAll(response.Body)
			body = response.Status + " " + string(text)
		}
		t.Fatalf("open %s: %v %s", url, err, body)
	}
	defer conn.Close()
	if got := conn.Subprotocol(); got != "plain.kubevirt.io" {
		t.Errorf("subprotocol %q", got)
	}
	sent := strings.Repeat("\x00\xffbytes", 5000)
	if err := conn.WriteMessage(websocket.BinaryMessage, []byte(sent)); err != nil {
		t.Fatal(err)
	}
	kind, data, err := conn.ReadMessage()
	if err != nil || kind != websocket.BinaryMessage || string(data) != sent {
		t.Errorf("echo: kind %d, %d bytes of %d, error %v", kind, len(data), len(sent), err)
	}
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
