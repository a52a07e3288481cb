package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"patchbay/internal/cluster/layout"
	"patchbay/internal/cluster/supervise"
)

// Progress is how far an `up` has come.
type Progress struct {
	Ready   int      // components that are ready
	Total   int      // components
	Waiting []string // names of those that are not, and nodes that are not ready
	Reasons []string // why, in the order of Waiting; may be empty
	Elapsed time.Duration
}

func (p *Progress) wait(name, reason string) {
	p.Waiting, p.Reasons = append(p.Waiting, name), append(p.Reasons, reason)
}

// reasons are the names with what is known of their trouble.
func (p *Progress) reasons() []string {
	var texts []string
	for i, name := range p.Waiting {
		if reason := p.Reasons[i]; reason != "" && !strings.HasPrefix(reason, supervise.WaitsFor) {
			name += " (" + reason + ")"
		}
		texts = append(texts, name)
	}
	return texts
}

// crashes is how often a component may end during `up` before the user is told why.
const crashes = 5

// waitUntilReady follows the state files until every component is ready, and then the nodes.
func waitUntilReady(ctx context.Context, c layout.Cluster, spec Spec, supervisor *supervise.Process, report func(Progress)) error {
	units, err := unitsOf(c, spec, newProxy(c, spec.APIPort, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	begin := time.Now()
	ticker := time.NewTicker(upPoll)
	defer ticker.Stop()
	before := map[string]int{}
	var progress Progress
	for {
		now, err := readProgress(c, units, before)
		if err != nil {
			return err
		}
		if len(now.Waiting) == 0 {
			addNotReady(ctx, c, spec, &now)
		}
		// An answer that came too late says nothing but that.
		if ctx.Err() == nil {
			progress = now
		}
		if progress.Elapsed = time.Since(begin); report != nil {
			report(progress)
		}
		if len(progress.Waiting) == 0 {
			return nil
		}
		if supervisor != nil && !supervisor.Alive() {
			return fmt.Errorf("the supervisor ended:\n%s", lastLines(supervise.LogPath(c.Logs(), supervisorUnit)))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up while waiting for %s: %w; `patchbay up` goes on from here, `patchbay status` tells more",
				strings.Join(progress.reasons(), ", "), context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

func readProgress(c layout.Cluster, units []supervise.Unit, before map[string]int) (Progress, error) {
	progress := Progress{Total: len(units)}
	for _, u := range units {
		state, err := supervise.ReadState(c.Run(), u.Name)
		if err != nil {
			return Progress{}, err
		}
		// A state that an earlier supervisor left says nothing about the process.
		current := state.Phase == supervise.Ready && (len(u.Command) == 0 || state.Process.Alive())
		if current {
			progress.Ready++
			continue
		}
		progress.wait(u.Name, state.Message)
		if _, ok := before[u.Name]; !ok {
			before[u.Name] = state.Restarts + state.Failures
		}
		switch {
		case state.Restarts+state.Failures-before[u.Name] < crashes:
		case state.Failures == 0:
			return Progress{}, crashError(c, state)
		default:
			return Progress{}, fmt.Errorf("%s cannot be set up: %s; `patchbay up` goes on from here once that is mended", state.Name, state.Message)
		}
	}
	return progress, nil
}

func crashError(c layout.Cluster, state supervise.State) error {
	return fmt.Errorf("%s does not stay up (%s); the end of its log %s:\n%s", state.Name, state.LastExit,
		supervise.LogPath(c.Logs(), state.Name), lastLines(supervise.LogPath(c.Logs(), state.Name)))
}

// lastLines are what a reader wants to see of a log first.
func lastLines(path string) string {
	const size, lines = 8 << 10, 12
	file, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err.Error()
	}
	data := make([]byte, min(size, info.Size()))
	if _, err := file.ReadAt(data, info.Size()-int64(len(data))); err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// addNotReady adds what the API server says is not ready for use, each with the reason.
func addNotReady(ctx context.Context, c layout.Cluster, spec Spec, progress *Progress) {
	client, err := apiClient(c)
	if err != nil {
		progress.wait("the list of nodes", err.Error())
		return
	}
	nodes, err := listNodes(ctx, client)
	if err != nil {
		// The API server is asked again, unless nobody waits any more.
		progress.wait("the list of nodes", err.Error())
		return
	}
	for _, node := range c.Nodes(spec.Nodes) {
		if err := nodeReady(nodes[node.Name]); err != nil {
			progress.wait(node.Name, err.Error())
		}
	}
	// Without it the API server refuses the user's first pod.
	if _, err := client.CoreV1().ServiceAccounts(corev1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		progress.wait("the default service account", err.Error())
	}
}

func apiClient(c layout.Cluster) (kubernetes.Interface, error) {
	config, err := restConfig(c)
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	return kubernetes.NewForConfig(config)
}

func listNodes(ctx context.Context, client kubernetes.Interface) (map[string]*corev1.Node, error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	nodes := make(map[string]*corev1.Node, len(list.Items))
	for i := range list.Items {
		nodes[list.Items[i].Name] = &list.Items[i]
	}
	return nodes, nil
}

func nodeReady(node *corev1.Node) error {
	if node == nil {
		return errors.New("has not registered")
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			if condition.Status == corev1.ConditionTrue {
				return nil
			}
			return errors.New(condition.Message)
		}
	}
	return errors.New("has no Ready condition yet")
}
