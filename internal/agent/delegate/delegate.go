// Package delegate has CNI plugins of others attach pods to networks that are not ours: it runs the program that a network's
// configuration names, as a container runtime would, and remembers what it ran, so that everything can be undone after any
// failure. Which networks a pod gets is decided elsewhere.
package delegate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"patchbay/internal/agent/durable"
	"patchbay/internal/agent/netns"
)

// Attachment is one interface that a plugin is to make.
type Attachment struct {
	Network   string // NAMESPACE/NAME of the definition
	Config    []byte // as the definition says, see ParseConfig
	Namespace string // of the pod
	Pod       string
	UID       string
	Container string // sandbox
	Netns     string
	Interface string // in the pod
	Request   Request
}

// Request is what the pod asks of the network, for plugins that declare the capability.
type Request struct {
	MAC            string         `json:"mac,omitempty"`
	IPs            []string       `json:"ips,omitempty"`
	PortMappings   any            `json:"portMappings,omitempty"`
	Bandwidth      any            `json:"bandwidth,omitempty"`
	InfinibandGUID string         `json:"infinibandGUID,omitempty"`
	Args           map[string]any `json:"args,omitempty"` // args.cni of the configuration
}

// Config says where a runner finds and keeps things.
type Config struct {
	PluginDirs []string
	Dir        string // of the runner's own records
	// Prepare is called before a plugin runs, for whatever command: it completes the configuration with what only the node knows
	// and starts what the plugin needs. It may be called with what it has completed before. nil: nothing.
	Prepare func(ctx context.Context, plugin map[string]any) error
}

// Runner runs plugins. Calls for different sandboxes may be concurrent.
type Runner struct {
	config Config
	cni    *libcni.CNIConfig
}

// New returns a runner.
func New(c Config) *Runner {
	return &Runner{config: c, cni: libcni.NewCNIConfigWithCacheDir(c.PluginDirs, filepath.Join(c.Dir, "results"), nil)}
}

// entry is the record of one attachment. It is written before the plugin runs: whatever a killed agent has begun is found again.
type entry struct {
	Network string          `json:"network"`
	Order   int             `json:"order"`
	Config  json.RawMessage `json:"config"` // completed
	Netns   string          `json:"netns"`
	Args    [][2]string     `json:"args"`
	Request Request         `json:"request"`
	Made    bool            `json:"made"` // the plugin has answered

	container, iface string
}

// Add attaches. When it fails nothing is left.
func (r *Runner) Add(ctx context.Context, a Attachment) (*current.Result, error) {
	before, err := r.entries(a.Container)
	if err != nil {
		return nil, err
	}
	config, err := complete(a)
	if err != nil {
		return nil, err
	}
	if config, err = r.prepare(ctx, config); err != nil {
		return nil, fmt.Errorf("network %s: %w", a.Network, err)
	}
	e := entry{Network: a.Network, Config: config, Netns: a.Netns, Args: cniArgs(a), Request: a.Request, container: a.Container, iface: a.Interface}
	for _, other := range before {
		e.Order = max(e.Order, other.Order+1)
		if other.iface == a.Interface { // of an attempt that did not finish
			if err := r.remove(ctx, other); err != nil {
				return nil, err
			}
		}
	}
	if missing, err := r.missing(config); err != nil || missing != "" {
		return nil, errors.Join(fmt.Errorf("network %s: no program of the CNI plugin %q is in %s; install it on the node", a.Network, missing,
			strings.Join(r.config.PluginDirs, " or ")), err)
	}
	if err := r.write(e); err != nil {
		return nil, err
	}
	result, err := r.add(ctx, e)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("network %s: %w%s", a.Network, err, noMaster(config)), r.remove(context.WithoutCancel(ctx), e))
	}
	e.Made = true
	if err := r.write(e); err != nil {
		return nil, errors.Join(err, r.remove(context.WithoutCancel(ctx), e))
	}
	return result, nil
}

func (r *Runner) add(ctx context.Context, e entry) (*current.Result, error) {
	list, err := libcni.NetworkConfFromBytes(e.Config)
	if err != nil {
		return nil, err
	}
	result, err := r.cni.AddNetworkList(ctx, list, e.runtime())
	if err != nil {
		return nil, err
	}
	return current.GetResult(result)
}

// prepare gives every plugin of a configuration to Config.Prepare.
func (r *Runner) prepare(ctx context.Context, config []byte) ([]byte, error) {
	if r.config.Prepare == nil {
		return config, nil
	}
	l, err := parseList(config, "")
	if err != nil {
		return nil, err
	}
	for _, plugin := range l.plugins {
		if err := r.config.Prepare(ctx, plugin); err != nil {
			return nil, err
		}
	}
	return json.Marshal(l.top)
}

// checkSince is the CNI version that brought CHECK.
const checkSince = "0.4.0"

// Check says whether an attachment is still as the plugin made it.
func (r *Runner) Check(ctx context.Context, container, iface string) error {
	all, err := r.entries(container)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.iface != iface {
			continue
		}
		list, err := libcni.NetworkConfFromBytes(e.Config)
		if err != nil {
			return err
		}
		if able, err := version.GreaterThanOrEqualTo(list.CNIVersion, checkSince); err != nil || !able {
			return err // its plugins know no CHECK
		}
		if err := r.cni.CheckNetworkList(ctx, list, e.runtime()); err != nil {
			return fmt.Errorf("network %s: %w", e.Network, err)
		}
		return nil
	}
	return fmt.Errorf("interface %s was not made by a plugin of this node", iface)
}

// Del detaches a sandbox from the named interfaces' networks, or from all if none is named: the last first. One that fails does not
// keep the others. What is not attached is no error.
func (r *Runner) Del(ctx context.Context, container string, interfaces ...string) error {
	all, err := r.entries(container)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range slices.Backward(all) {
		if len(interfaces) == 0 || slices.Contains(interfaces, e.iface) {
			errs = append(errs, r.remove(ctx, e))
		}
	}
	return errors.Join(errs...)
}

func (r *Runner) remove(ctx context.Context, e entry) error {
	config, err := r.prepare(ctx, e.Config)
	if err != nil {
		return fmt.Errorf("detach from network %s: %w", e.Network, err)
	}
	if missing, err := r.missing(config); err != nil || missing != "" {
		// A pod must not stay for ever because somebody has removed a plugin from the node; its devices go with its namespace.
		return errors.Join(err, r.forget(e))
	}
	list, err := libcni.NetworkConfFromBytes(config)
	if err == nil {
		runtime := e.runtime()
		if !netns.Exists(e.Netns) {
			runtime.NetNS = "" // addresses are given back all the same
		}
		err = r.cni.DelNetworkList(ctx, list, runtime)
	}
	// What a plugin refuses to make it often refuses to take away, and trying for ever would keep the pod from ending.
	if err != nil && e.Made {
		return fmt.Errorf("detach from network %s: %w", e.Network, err)
	}
	return r.forget(e)
}

// missing names a plugin of the configuration that has no program.
func (r *Runner) missing(config []byte) (string, error) {
	l, err := parseList(config, "")
	if err != nil {
		return "", err
	}
	for _, plugin := range l.plugins {
		kind, _ := plugin["type"].(string)
		if _, err := invoke.FindInPath(kind, r.config.PluginDirs); err != nil {
			return kind, nil
		}
	}
	return "", nil
}

// Containers lists the sandboxes that have attachments.
func (r *Runner) Containers() ([]string, error) {
	entries, err := os.ReadDir(r.journal())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list what other CNI plugins have attached: %w", err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, nil
}

func (e entry) runtime() *libcni.RuntimeConf {
	capabilities := map[string]any{}
	set := func(key string, wanted bool, value any) {
		if wanted {
			capabilities[key] = value
		}
	}
	set("mac", e.Request.MAC != "", e.Request.MAC)
	set("ips", len(e.Request.IPs) > 0, e.Request.IPs)
	set("portMappings", e.Request.PortMappings != nil, e.Request.PortMappings)
	set("bandwidth", e.Request.Bandwidth != nil, e.Request.Bandwidth)
	set("infinibandGUID", e.Request.InfinibandGUID != "", e.Request.InfinibandGUID)
	return &libcni.RuntimeConf{ContainerID: e.container, NetNS: e.Netns, IfName: e.iface, Args: e.Args, CapabilityArgs: capabilities}
}

// cniArgs are what plugins read of a pod. MAC and IP are the older way to ask for addresses; plugins that have capabilities prefer those.
func cniArgs(a Attachment) [][2]string {
	args := [][2]string{
		{"IgnoreUnknown", "true"},
		{"K8S_POD_NAMESPACE", a.Namespace}, {"K8S_POD_NAME", a.Pod}, {"K8S_POD_UID", a.UID},
		{"K8S_POD_INFRA_CONTAINER_ID", a.Container},
	}
	if a.Request.MAC != "" {
		args = append(args, [2]string{"MAC", a.Request.MAC})
	}
	if len(a.Request.IPs) > 0 {
		args = append(args, [2]string{"IP", strings.Join(a.Request.IPs, ",")})
	}
	return args
}

func (r *Runner) journal() string { return filepath.Join(r.config.Dir, "attachments") }

const suffix = ".json"

func (r *Runner) write(e entry) error {
	if e.container == "" || strings.ContainsRune(e.container, filepath.Separator) || strings.ContainsRune(e.iface, filepath.Separator) {
		return fmt.Errorf("sandbox %q and interface %q cannot name a record", e.container, e.iface)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.journal(), e.container)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("record the attachment to network %s: %w", e.Network, err)
	}
	if err := durable.Write(filepath.Join(dir, e.iface+suffix), data, 0o600); err != nil {
		return fmt.Errorf("record the attachment to network %s: %w", e.Network, err)
	}
	return nil
}

func (r *Runner) forget(e entry) error {
	dir := filepath.Join(r.journal(), e.container)
	if err := os.Remove(filepath.Join(dir, e.iface+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of the attachment to network %s: %w", e.Network, err)
	}
	_ = os.Remove(dir) // unless another interface is recorded there
	return nil
}

// entries are a sandbox's attachments in the order in which they were made. A record that cannot be read is set aside.
func (r *Runner) entries(container string) ([]entry, error) {
	dir := filepath.Join(r.journal(), container)
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what other CNI plugins have attached to sandbox %s: %w", container, err)
	}
	var all []entry
	for _, file := range files {
		iface, ok := strings.CutSuffix(file.Name(), suffix)
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			return nil, err
		}
		e := entry{container: container, iface: iface}
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, fmt.Errorf("record %s of what a CNI plugin attached is damaged; remove it: %w", filepath.Join(dir, file.Name()), err)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b entry) int { return a.Order - b.Order })
	return all, nil
}
