// Package shim is the CNI plugin that container runtimes start: it hands its environment and standard input to the node
// agent's unix socket and prints the answer. It decides nothing about networks. A runtime starts it for every pod, so it
// imports the standard library only and must start in a few milliseconds.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Error codes of the CNI specification (1.1, "Error").
const (
	CodeIncompatibleVersion = 1
	CodeUnknownContainer    = 3
	CodeInvalidEnvironment  = 4
	CodeIOFailure           = 5
	CodeDecodingFailure     = 6
	CodeInvalidConfig       = 7
	CodeTryAgainLater       = 11
	CodeNotAvailable        = 50
)

// CodeWiring is our own code (100 and above are the plugin's): the pod could not be connected; the message says which step failed.
const CodeWiring = 100

// SupportedVersions are the CNI versions that the plugin answers in, oldest first.
var SupportedVersions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Deadline is how long the shim waits for the agent. The agent gives up earlier, and kubelet (4 min) later.
const Deadline = 110 * time.Second

// Grace is how long STATUS stays good while the agent is away: an agent that restarts must not make the node NotReady, which
// would take its pods out of their services. The agent sets the socket file's time each Grace/4.
const Grace = time.Minute

const (
	newestVersion   = "1.1.0"
	notRunning      = "the node agent is not running yet; kubelet retries"
	agentWentAway   = "the node agent stopped while it handled the request; kubelet retries"
	dialDeadline    = 2 * time.Second
	maxRequestBytes = 4 << 20
)

// Request is one CNI call as the runtime made it. The agent reads it as one JSON value and then watches the connection: if
// the shim goes away the request is cancelled.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID"`
	Netns       string          `json:"netns"`
	IfName      string          `json:"ifName"`
	Args        string          `json:"args"`
	Config      json.RawMessage `json:"config"`
}

// Pod is whom a runtime makes an interface for. What it does not say is empty.
type Pod struct{ Namespace, Name, UID string }

// Pod reads CNI_ARGS as Kubernetes' runtimes write it.
func (r Request) Pod() (p Pod) {
	for pair := range strings.SplitSeq(r.Args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAMESPACE":
			p.Namespace = value
		case "K8S_POD_NAME":
			p.Name = value
		case "K8S_POD_UID":
			p.UID = value
		}
	}
	return p
}

// Response holds either the JSON to print or an error.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// Error is an error as the CNI specification prints it.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// config is what the shim itself reads of the network configuration. A plugin that is asked for addresses by another plugin gets that
// one's configuration and finds its own in ipam.
type config struct {
	CNIVersion string `json:"cniVersion"`
	Socket     string `json:"socket"`
	IPAM       struct {
		Socket string `json:"socket"`
	} `json:"ipam"`
}

func (c config) socket() string {
	if c.IPAM.Socket != "" {
		return c.IPAM.Socket
	}
	return c.Socket
}

// Run handles one CNI call and returns the exit status.
func Run(ctx context.Context, getenv func(string) string, stdin io.Reader, stdout io.Writer) int {
	conf, raw, err := readConfig(stdin)
	if err == nil {
		var result json.RawMessage
		if result, err = call(ctx, getenv, conf, raw); err == nil {
			if len(result) > 0 {
				_, _ = stdout.Write(append(result, '\n'))
			}
			return 0
		}
	}
	printError(stdout, conf.CNIVersion, err)
	return 1
}

func readConfig(stdin io.Reader) (config, json.RawMessage, error) {
	raw, err := io.ReadAll(io.LimitReader(stdin, maxRequestBytes))
	if err != nil {
		return config{}, nil, &Error{Code: CodeIOFailure, Msg: "read the network configuration from standard input", Details: err.Error()}
	}
	var conf config
	if err := json.Unmarshal(raw, &conf); err != nil {
		return config{}, nil, &Error{Code: CodeDecodingFailure, Msg: "the network configuration is not JSON", Details: err.Error()}
	}
	return conf, raw, nil
}

func call(ctx context.Context, getenv func(string) string, conf config, raw json.RawMessage) (json.RawMessage, error) {
	command := getenv("CNI_COMMAND")
	switch command {
	case "VERSION":
		return versions(conf.CNIVersion)
	case "ADD", "DEL", "CHECK", "GC", "STATUS":
	default:
		return nil, &Error{Code: CodeInvalidEnvironment, Msg: fmt.Sprintf("CNI_COMMAND is %q; want ADD, DEL, CHECK, GC, STATUS or VERSION", command)}
	}
	if conf.socket() == "" {
		return nil, &Error{Code: CodeInvalidConfig, Msg: `the network configuration has no "socket"; the node agent writes one that has`}
	}
	result, err := ask(ctx, conf.socket(), Request{
		Command:     command,
		ContainerID: getenv("CNI_CONTAINERID"),
		Netns:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Config:      raw,
	})
	var e *Error
	if command == "STATUS" && errors.As(err, &e) && e.Code == CodeNotAvailable && seenWithin(conf.socket(), Grace) {
		return nil, nil
	}
	return result, err
}

func seenWithin(socket string, limit time.Duration) bool {
	info, err := os.Stat(socket)
	return err == nil && time.Since(info.ModTime()) < limit
}

func ask(ctx context.Context, socket string, request Request) (json.RawMessage, error) {
	dialer := net.Dialer{Timeout: dialDeadline}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, unavailable(request.Command, notRunning, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Deadline)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return nil, unavailable(request.Command, agentWentAway, err)
	}
	var response Response
	if err := json.NewDecoder(conn).Decode(&response); err != nil {
		return nil, unavailable(request.Command, agentWentAway, err)
	}
	if response.Error != nil {
		return nil, response.Error
	}
	return response.Result, nil
}

// unavailable says that nobody answers, with the code that each command has for it.
func unavailable(command, msg string, err error) *Error {
	code := uint(CodeTryAgainLater)
	if command == "STATUS" {
		code = CodeNotAvailable
	}
	return &Error{Code: code, Msg: msg, Details: err.Error()}
}

func versions(asked string) (json.RawMessage, error) {
	if asked == "" {
		asked = newestVersion
	}
	return json.Marshal(map[string]any{"cniVersion": asked, "supportedVersions": SupportedVersions})
}

func printError(stdout io.Writer, version string, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: CodeIOFailure, Msg: err.Error()}
	}
	if version == "" {
		version = newestVersion
	}
	e.CNIVersion = version
	_ = json.NewEncoder(stdout).Encode(e)
}
