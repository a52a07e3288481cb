package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/images"
	"patchbay/internal/cluster/layout"
)

// loaded is what happened to one archive on one node.
type loaded struct {
	Node string `json:"node"`
	images.Result
}

func newImageLoadCommand() *cobra.Command {
	var (
		name   string
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "load ARCHIVE...",
		Short: "Load image archives into every node of a local cluster",
		Long: `Load image archives (from "patchbay image build", "docker save" or "podman save") into every node of a local cluster. Pods and virtual
machines name them as the archive does; imagePullPolicy must not be Always.`,
		Example: `  sudo patchbay image load fedora.tar
  sudo patchbay image load --name test build/images/tiny.tar build/images/debian.tar`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeArchives,
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := clusterNodes(name)
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			results, err := loadImages(ctx, nodes, args)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), results, func(w io.Writer) { printLoaded(w, results) })
		},
	}
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	return cmd
}

func clusterNodes(name string) ([]layout.Node, error) {
	place, err := layout.New(name)
	if err != nil {
		return nil, err
	}
	return cluster.Nodes(place)
}

func loadImages(ctx context.Context, nodes []layout.Node, archives []string) ([]loaded, error) {
	bar := newProgressBar(os.Stderr)
	defer bar.end()
	var results []loaded
	total := int64(len(nodes) * len(archives))
	for _, archive := range archives {
		for _, node := range nodes {
			bar.show(filepath.Base(archive)+" into "+node.Name, int64(len(results)), total)
			result, err := images.Load(ctx, node.ContainerdSocket(), archive)
			if err != nil {
				return results, fmt.Errorf("%s: %w", node.Name, err)
			}
			results = append(results, loaded{node.Name, result[0]})
		}
	}
	return results, nil
}

func printLoaded(w io.Writer, results []loaded) {
	for _, r := range results {
		what := "has"
		if r.Loaded {
			what = "loaded"
		}
		fmt.Fprintf(w, "%s %s %s\n", r.Node, what, strings.Join(r.Images, ", "))
	}
}

// listed is an image and the nodes that have it.
type listed struct {
	images.Image
	Nodes []string `json:"nodes"`
}

func newImageListCommand() *cobra.Command {
	var (
		name   string
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the images that the nodes of a local cluster have",
		Long: `List the images that the nodes of a local cluster have, loaded or pulled. An image of which nodes have different versions appears
once for each version.`,
		Example: `  sudo patchbay image list
  sudo patchbay image list --name test --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			nodes, err := clusterNodes(name)
			if err != nil {
				return err
			}
			list, err := listImages(cmd.Context(), nodes)
			if err != nil {
				return err
			}
			return output.print(cmd.OutOrStdout(), list, func(w io.Writer) { printImages(w, list) })
		},
	}
	addNameFlag(cmd, &name)
	output.addFlag(cmd)
	return cmd
}

// listImages merges the nodes' lists; an image of which nodes have different versions appears once for each.
func listImages(ctx context.Context, nodes []layout.Node) ([]listed, error) {
	type key struct{ name, digest string }
	all := map[key]*listed{}
	for _, node := range nodes {
		have, err := images.List(ctx, node.ContainerdSocket())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", node.Name, err)
		}
		for _, i := range have {
			k := key{i.Name, i.Digest}
			if all[k] == nil {
				all[k] = &listed{Image: i}
			}
			all[k].Nodes = append(all[k].Nodes, node.Name)
		}
	}
	out := []listed{}
	for _, k := range slices.SortedFunc(maps.Keys(all), func(a, b key) int {
		return strings.Compare(a.name+a.digest, b.name+b.digest)
	}) {
		out = append(out, *all[k])
	}
	return out, nil
}

func printImages(w io.Writer, list []listed) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "IMAGE\tSIZE\tDIGEST\tNODES")
	for _, i := range list {
		digest := strings.TrimPrefix(i.Digest, "sha256:")
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", i.Name, megabytes(i.Size), digest[:min(12, len(digest))], strings.Join(i.Nodes, ", "))
	}
	table.Flush()
}
