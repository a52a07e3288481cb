package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster/layout"
)

func newKubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "kubectl [--name NAME] [--] ARGUMENTS",
		Short: "Run kubectl against a local cluster",
		Long: `Become kubectl, with the kubeconfig of a local cluster. --name stands before everything else; the rest is kubectl's own, its flags
included. No kubectl needs to be installed: patchbay-kube holds one.`,
		Example: `  patchbay kubectl get vm,vmi -A
  patchbay kubectl --name test apply -f examples/masquerade-ports.yaml
  patchbay kubectl --name test -- get pods --watch`,
		Annotations:       exits("those of kubectl", "1 when the cluster was never started"),
		ValidArgsFunction: completeKubectl,
		// kubectl has its own flags; ours stand before them.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			name, rest, err := takeName(args)
			if err != nil {
				return err
			}
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			return execKubectl(place, rest)
		},
	}
}

// takeName takes a leading --name, and a leading --, off the arguments.
func takeName(args []string) (name string, rest []string, err error) {
	name, rest = defaultName, args
	if len(rest) > 0 {
		if value, ok := strings.CutPrefix(rest[0], "--name="); ok {
			name, rest = value, rest[1:]
		} else if rest[0] == "--name" {
			if len(rest) < 2 {
				return "", nil, fmt.Errorf("--name needs the name of a cluster")
			}
			name, rest = rest[1], rest[2:]
		}
	}
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	return name, rest, nil
}

// execKubectl becomes kubectl, so that terminals and signals work as with kubectl itself.
func execKubectl(place layout.Cluster, args []string) error {
	if _, err := os.Stat(place.Kubeconfig()); err != nil {
		return fmt.Errorf("cluster %q has no kubeconfig (%w); start it with `patchbay up%s`", place.Name, err, nameFlag(place.Name))
	}
	engine := engineProgram()
	if err := os.Setenv("KUBECONFIG", place.Kubeconfig()); err != nil {
		return err
	}
	if err := syscall.Exec(engine, append([]string{"kubectl"}, args...), os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w; it must lie beside the patchbay program", engine, err)
	}
	return nil
}

func newKubeconfigCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the kubeconfig of a local cluster",
		Long: `Print the administrator's kubeconfig of a local cluster, which reaches the API server at 127.0.0.1. Only root can read it.
"patchbay up --merge-kubeconfig" adds it to your own file instead.`,
		Example: `  sudo patchbay kubeconfig > test.kubeconfig
  sudo patchbay kubeconfig --name test > test.kubeconfig`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := layout.New(name)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(place.Kubeconfig())
			if err != nil {
				return fmt.Errorf("cluster %q has no kubeconfig (%w); start it with `patchbay up%s`", name, err, nameFlag(name))
			}
			_, err = cmd.OutOrStdout().Write(data)
			return err
		},
	}
	addNameFlag(cmd, &name)
	return cmd
}

// engineProgram is patchbay-kube, beside this program.
func engineProgram() string {
	self, err := os.Executable()
	if err != nil {
		return "patchbay-kube"
	}
	return filepath.Join(filepath.Dir(self), "patchbay-kube")
}
