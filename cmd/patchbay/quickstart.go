package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"patchbay/examples"
	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
	"patchbay/internal/quickstart"
)

func newQuickstartCommand() *cobra.Command {
	var (
		name    string
		request cluster.UpRequest
		output  outputFormat
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "quickstart",
		Short: "Start a cluster and show two virtual machines and a Service at work",
		Long: `Start a local cluster as "patchbay up" does, apply two virtual machines and a Service over them, wait until they run, and print what
they say to each other. The machines stay, to be played with. Run again, it shows them again.`,
		Example: `  sudo patchbay quickstart
  sudo patchbay quickstart --name demo --api-port 7443`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			request.Cluster = place
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%v are over", timeout))
			defer cancel()
			status, result, err := showQuickstart(ctx, place, request)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), result, func(w io.Writer) { printQuickstart(w, status, result) })
		},
	}
	flags := cmd.Flags()
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	flags.IntVar(&request.APIPort, "api-port", 0, fmt.Sprintf("port of the Kubernetes API on 127.0.0.1 (default %d)", cluster.DefaultAPIPort))
	flags.DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for everything")
	return cmd
}

func showQuickstart(ctx context.Context, place layout.Cluster, request cluster.UpRequest) (cluster.Status, quickstart.Result, error) {
	progress := newProgressLine(os.Stderr)
	defer progress.end()
	request.Report = progress.show
	status, err := cluster.Up(ctx, request)
	if err != nil {
		return status, quickstart.Result{}, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", place.Kubeconfig())
	if err != nil {
		return status, quickstart.Result{}, err
	}
	begin := time.Now()
	result, err := quickstart.Run(ctx, quickstart.Config{
		REST: config, Manifests: examples.Quickstart, Namespace: "default",
		Progress: func(text string) { progress.say(time.Since(begin), text) },
	})
	return status, result, err
}

func printQuickstart(w io.Writer, status cluster.Status, result quickstart.Result) {
	printUp(w, status, "")
	fmt.Fprintln(w)
	result.Print(w)
	kubectl := "patchbay kubectl" + nameFlag(status.Name)
	fmt.Fprintf(w, `
From the manifests to the last answer: %.1f s. What to type next (patchbay lies in bin/):

  %[2]s get vm,vmi,svc -o wide     what runs
  %[2]s describe vmi web-01        addresses, conditions, events
  %[2]s delete -f examples/quickstart.yaml
  patchbay status%[3]s                    every process, its health and its log
  patchbay down%[3]s                      remove the cluster without a trace
`, result.Seconds, kubectl, nameFlag(status.Name))
}
