// Command patchbay-kube is the Kubernetes engine of the embedded cluster: the real etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, kubelet, containerd and kubectl in one executable, dispatched by the first
// argument or by the name it was called with (`kubectl -> patchbay-kube`).
//
// It holds no logic of Patchbay, so that it is rebuilt only when a version of Kubernetes, etcd or containerd changes.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	_ "time/tzdata" // CronJobs name time zones; the host may have no zone files

	containerd "github.com/containerd/containerd/v2/cmd/containerd/command"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics on /metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // build_info on /metrics
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
)

// components maps a component's name to the function that runs it to its end and gives its exit code. Only the one that
// runs is constructed: the controller-manager and the scheduler each install the process's signal handler when they are
// built, and two of them in one process panic.
var components = map[string]func() int{
	"etcd":                    runEtcd,
	"containerd":              runContainerd,
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubelet":                 func() int { return cli.Run(newKubelet()) },
	"kubectl":                 func() int { return cli.Run(kubectl.NewDefaultKubectlCommand()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, ok := components[name]; !ok && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	run, ok := components[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "patchbay-kube: name the component to run as the first argument: %s\n", strings.Join(names(), ", "))
		os.Exit(2)
	}
	os.Exit(run())
}

func names() []string {
	var all []string
	for name := range components {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

func newKubelet() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }

func runEtcd() int {
	etcdmain.Main(os.Args)
	return 0
}

func runContainerd() int {
	if err := containerd.App().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		return 1
	}
	return 0
}
