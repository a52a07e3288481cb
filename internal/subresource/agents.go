package subresource

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	virtv1 "kubevirt.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// agentPatience is how long an agent may take to answer a request or to start a stream.
const agentPatience = 30 * time.Second

// errPauseProbe: a liveness probe that is not the guest agent's would kill a paused machine.
const errPauseProbe published = "Pausing VMIs with a non-GuestAgentPing LivenessProbe is not supported"

func newTransport(c Config) *http.Transport {
	return &http.Transport{
		DialContext:           c.Dial,
		TLSClientConfig:       c.AgentTLS,
		TLSHandshakeTimeout:   agentPatience,
		ResponseHeaderTimeout: agentPatience,
		IdleConnTimeout:       time.Minute,
	}
}

// toAgent hands a request to the agent of an instance's node and copies bytes both ways. After the switch to a websocket the
// frames pass unread, so framing and keep-alives are between the client and the agent.
func (s *Server) toAgent(w http.ResponseWriter, r *http.Request, vmi *virtv1.VirtualMachineInstance) {
	target, err := s.agentURL(r, vmi)
	if err != nil {
		refuse(w, err)
		return
	}
	proxy := &httputil.ReverseProxy{
		Transport: s.transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL, p.Out.Host = target, target.Host
			dropIdentity(p.Out.Header)
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuse(w, apierrors.NewInternalError(fmt.Errorf("the agent of node %s does not answer: %w", vmi.Status.NodeName, err)))
		},
		ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug), // streams that break are not our news
	}
	proxy.ServeHTTP(w, r)
}

// dropIdentity removes what the API server says about the caller: the agent trusts the controller, not headers.
func dropIdentity(h http.Header) {
	for name := range h {
		if strings.HasPrefix(name, "X-Remote-") || strings.HasPrefix(name, "Impersonate-") {
			delete(h, name)
		}
	}
	h.Del("Authorization")
	h.Del("Cookie")
}

// agentURL is where the agent serves the same verb.
func (s *Server) agentURL(r *http.Request, vmi *virtv1.VirtualMachineInstance) (*url.URL, error) {
	if vmi.Status.NodeName == "" {
		return nil, instanceConflict(vmi.Name, notRunning)
	}
	node := &corev1.Node{}
	if err := s.Client.Get(r.Context(), client.ObjectKey{Name: vmi.Status.NodeName}, node); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("find the node of %s/%s: %w", vmi.Namespace, vmi.Name, err))
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return &url.URL{
				Scheme: "https", Host: net.JoinHostPort(a.Address, AgentPort), RawQuery: r.URL.RawQuery,
				Path: fmt.Sprintf("/v1/namespaces/%s/%s/%s/%s", vmi.Namespace, instances, vmi.Name, tail(r)),
			}, nil
		}
	}
	return nil, apierrors.NewInternalError(fmt.Errorf("node %s has no InternalIP; wait until its kubelet has reported one", node.Name))
}

// tail is the path below the object; a port is always sent with its protocol.
func tail(r *http.Request) string {
	if port := r.PathValue("port"); port != "" {
		protocol := r.PathValue("protocol")
		if protocol == "" {
			protocol = "tcp"
		}
		return "portforward/" + port + "/" + protocol
	}
	return r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
}
