package main

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go test -run ^TestReference$ -count 1 -update .

var update = flag.Bool("update", false, "write docs/cli anew")

const referenceDir = "../../docs/cli"

// TestReference keeps docs/cli equal to the command tree.
func TestReference(t *testing.T) {
	want := map[string]string{}
	for _, c := range visible(newRootCommand()) {
		want[fileOf(c)] = page(c)
	}
	if *update {
		writePages(t, want)
	}
	got := map[string]string{}
	files, err := filepath.Glob(filepath.Join(referenceDir, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got[filepath.Base(file)] = string(text)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("docs/cli is not what the commands say (-want +got); run go generate ./cmd/patchbay:\n%s", diff)
	}
}

func writePages(t *testing.T, pages map[string]string) {
	t.Helper()
	if err := os.RemoveAll(referenceDir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(referenceDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(referenceDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// visible is a command and all below it that people should know.
func visible(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			all = append(all, visible(sub)...)
		}
	}
	return all
}

func fileOf(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "_") + ".md" }

// page is the manual page of a command.
func page(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n%s.\n\n", c.CommandPath(), c.Short)
	if c.Runnable() {
		fmt.Fprintf(&b, "```\n%s\n```\n\n", c.UseLine())
	}
	if c.Long != "" {
		fmt.Fprintf(&b, "%s\n\n", strings.TrimSpace(c.Long))
	}
	if c.Example != "" {
		fmt.Fprintf(&b, "## Examples\n\n```\n%s\n```\n\n", outdent(c.Example))
	}
	writeCommands(&b, c)
	writeFlags(&b, c.NonInheritedFlags())
	writeExits(&b, c)
	if c.HasParent() {
		fmt.Fprintf(&b, "Part of [%s](%s).\n", c.Parent().CommandPath(), fileOf(c.Parent()))
	} else {
		b.WriteString("Back to [the manual](../README.md).\n")
	}
	return b.String()
}

func outdent(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

func writeCommands(b *strings.Builder, c *cobra.Command) {
	subs := slices.DeleteFunc(slices.Clone(c.Commands()), func(s *cobra.Command) bool { return !s.IsAvailableCommand() })
	if len(subs) == 0 {
		return
	}
	slices.SortFunc(subs, func(a, b *cobra.Command) int { return cmp.Compare(a.Name(), b.Name()) })
	b.WriteString("## Commands\n\n| command | |\n|---|---|\n")
	for _, s := range subs {
		fmt.Fprintf(b, "| [%s](%s) | %s |\n", s.CommandPath(), fileOf(s), s.Short)
	}
	b.WriteString("\n")
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	var rows bytes.Buffer
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + value
		}
		fallback := f.DefValue
		if fallback == "" || fallback == "[]" || fallback == "false" || fallback == "0" {
			fallback = ""
		} else {
			fallback = "`" + fallback + "`"
		}
		fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", name, fallback, usage)
	})
	if rows.Len() > 0 {
		fmt.Fprintf(b, "## Flags\n\n| flag | default | |\n|---|---|---|\n%s\n", rows.String())
	}
}

func writeExits(b *strings.Builder, c *cobra.Command) {
	if !c.Runnable() {
		return
	}
	codes := c.Annotations[exitsKey]
	if codes == "" {
		codes = "0 when it is done\n1 when it is not"
	}
	b.WriteString("## Exit codes\n\n")
	for line := range strings.Lines(codes) {
		fmt.Fprintf(b, "- %s\n", strings.TrimSpace(line))
	}
	b.WriteString("\nErrors go to standard error, as one sentence that says what to do.\n\n")
}

// TestEveryCommandIsExplained holds the texts to a minimum.
func TestEveryCommandIsExplained(t *testing.T) {
	for _, c := range visible(newRootCommand()) {
		if c.Long == "" || c.Example == "" {
			t.Errorf("%s has no Long or no Example", c.CommandPath())
		}
		if strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short ends with a full stop", c.CommandPath())
		}
	}
}
