package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandsOfTheManual parses every patchbay command of a code block in the manual with the command tree.
func TestCommandsOfTheManual(t *testing.T) {
	found := 0
	for _, file := range manualPages(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for n, line := range codeLines(string(text)) {
			for _, words := range commandsOf(line) {
				found++
				if err := parses(words); err != nil {
					t.Errorf("%s:%d: %q: %v", file, n, line, err)
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d commands were found; does the search still work?", found)
	}
}

func manualPages(t *testing.T) []string {
	t.Helper()
	pages := []string{"../../README.md", "../../CONTRIBUTING.md"}
	err := filepath.WalkDir("../../docs", func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// codeLines are the lines inside fences, by number.
func codeLines(text string) map[int]string {
	lines, inside, number := map[int]string{}, false, 0
	for line := range strings.Lines(text) {
		number++
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			inside = !inside
		case inside:
			lines[number] = strings.TrimSpace(line)
		}
	}
	return lines
}

var command = regexp.MustCompile(`^(?:\$ )?(?:sudo )?(?:bin/)?patchbay( .*)?$`)

// commandsOf are the words after "patchbay" of each command in a line of code.
func commandsOf(line string) [][]string {
	if !command.MatchString(line) {
		return nil
	}
	var all [][]string
	for _, part := range regexp.MustCompile(`\s*(?:&&| \| )\s*`).Split(line, -1) {
		match := command.FindStringSubmatch(part)
		if match == nil {
			continue
		}
		text, _, _ := strings.Cut(match[1], " #")
		text, _, _ = strings.Cut(text, " >")
		text, _, _ = strings.Cut(strings.TrimSpace(text), "   ") // a remark beside it
		all = append(all, strings.Fields(text))
	}
	return all
}

// parses reports why words are no command line.
func parses(words []string) error {
	if len(words) == 0 || isUsage(words) {
		return nil
	}
	c, rest, err := newRootCommand().Find(words)
	if err != nil {
		return err
	}
	if c.DisableFlagParsing {
		_, _, err := takeName(rest)
		return err
	}
	return parseFlags(c, rest)
}

// isUsage tells a line of syntax from one to be typed.
func isUsage(words []string) bool {
	return strings.ContainsAny(strings.Join(words, " "), "[|")
}

func parseFlags(c *cobra.Command, words []string) error {
	c.InitDefaultHelpFlag()
	if err := c.ParseFlags(words); err != nil {
		return err
	}
	if err := c.ValidateRequiredFlags(); err != nil {
		return err
	}
	if !c.Runnable() && len(c.Flags().Args()) > 0 {
		return fmt.Errorf("there is no such command")
	}
	return c.ValidateArgs(c.Flags().Args())
}

func TestWhatIsNoCommandIsFound(t *testing.T) {
	for line, want := range map[string]bool{
		"$ patchbay up --name a":                          true,
		"$ sudo patchbay up --nam a":                      false,
		"$ patchbay image bild x":                         false,
		"patchbay down now":                               false,
		"patchbay image build disk.qcow2":                 false,
		"$ patchbay kubectl --name a get vm -o yaml":      true,
		"$ patchbay down && patchbay up --nodez 3":        false,
		"$ patchbay kubeconfig --name a > a.kubeconfig":   true,
		"$ patchbay status   # every process":             true,
		"patchbay status --name a       what it looks at": true,
	} {
		var err error
		commands := commandsOf(line)
		for _, words := range commands {
			if e := parses(words); e != nil {
				err = e
			}
		}
		if len(commands) == 0 || (err == nil) != want {
			t.Errorf("%q: %d commands, error %v", line, len(commands), err)
		}
	}
}
