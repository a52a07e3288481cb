package guestshell

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Dial opens the serial console of a virtual machine instance through the API server, as virtctl does.
func Dial(ctx context.Context, config *rest.Config, namespace, name string) (io.ReadWriteCloser, error) {
	stream, err := DialPath(ctx, config, fmt.Sprintf("/apis/subresources.kubevirt.io/v1/namespaces/%s/virtualmachineinstances/%s/console", namespace, name))
	if err != nil {
		return nil, fmt.Errorf("open the console of %s/%s: %w", namespace, name, err)
	}
	return stream, nil
}

// DialPath opens a stream that the API server serves as a websocket: a console, a screen, a tunnel. Each Write is one message, which
// matters to tunnels of datagrams; Read goes on to the next message when one is read.
func DialPath(ctx context.Context, config *rest.Config, path string) (io.ReadWriteCloser, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	target.Scheme = "wss"
	target.Path = path
	header := http.Header{}
	if config.BearerToken != "" {
		header.Set("Authorization", "Bearer "+config.BearerToken)
	}
	dialer := websocket.Dialer{TLSClientConfig: tlsConfig, Subprotocols: []string{"plain.kubevirt.io"}, NetDialContext: config.Dial}
	conn, response, err := dialer.DialContext(ctx, target.String(), header)
	if err != nil {
		return nil, explain(response, err)
	}
	return &stream{conn: conn}, nil
}

// explain adds what the server said before it refused the websocket.
func explain(response *http.Response, err error) error {
	if response == nil || response.Body == nil {
		return err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1<<12))
	var status metav1.Status
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		return &apierrors.StatusError{ErrStatus: status}
	}
	return fmt.Errorf("%w: %s: %s", err, response.Status, strings.TrimSpace(string(body)))
}

// stream reads and writes the binary messages of a websocket as bytes.
type stream struct {
	conn    *websocket.Conn
	message io.Reader
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.message == nil {
			_, message, err := s.conn.NextReader()
			if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			s.message = message
		}
		n, err := s.message.Read(p)
		if errors.Is(err, io.EOF) {
			s.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (s *stream) Write(p []byte) (int, error) {
	if err := s.conn.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *stream) Close() error { return s.conn.Close() }
