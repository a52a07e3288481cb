package main

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"patchbay/internal/cluster"
	"patchbay/internal/cluster/layout"
)

// completeNames offers the local clusters of this host.
func completeNames(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	place, err := layout.New(defaultName)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := cluster.Names(place.Home) // what cannot be read is not offered
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeArchives offers image archives.
func completeArchives(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"tar"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeKubectl offers cluster names after --name, and asks kubectl for everything else: it knows its commands, and the objects of
// the cluster.
func completeKubectl(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 1 && args[0] == "--name" {
		return completeNames(cmd, args, word)
	}
	name, rest, err := takeName(args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	place, err := layout.New(name)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ask := exec.CommandContext(cmd.Context(), engineProgram(), append(append([]string{"kubectl", cobra.ShellCompRequestCmd}, rest...), word)...)
	ask.Env = append(os.Environ(), "KUBECONFIG="+place.Kubeconfig())
	answer, err := ask.Output()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return parseCompletions(answer)
}

// parseCompletions reads what a cobra program answers: a word a line, and a colon with the directive at the end.
func parseCompletions(answer []byte) ([]string, cobra.ShellCompDirective) {
	lines := strings.Split(string(bytes.TrimSpace(answer)), "\n")
	last := len(lines) - 1
	directive, err := strconv.Atoi(strings.TrimPrefix(lines[last], ":"))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return lines[:last], cobra.ShellCompDirective(directive)
}
