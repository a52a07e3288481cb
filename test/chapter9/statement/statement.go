// Package statement knows the numbered statements that the product must satisfy, and reads from a `go test -json` stream
// which of them were tested and how that went. It must not know how any of them is tested.
package statement

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

//go:embed statements.txt
var text string

// Statement is one sentence that must hold.
type Statement struct {
	ID      string // "9.2.1-C4"
	Section string // "9.2.1"
	Text    string
}

// All returns the statements in the order of the document.
func All() ([]Statement, error) { return parse(text) }

var statementLine = regexp.MustCompile(`^([CKU]\d+) (.+)$`)

func parse(text string) ([]Statement, error) {
	var all []Statement
	section := ""
	seen := map[string]bool{}
	for n, line := range strings.Split(text, "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "== "):
			section = strings.Fields(line)[1]
		default:
			m := statementLine.FindStringSubmatch(line)
			if m == nil || section == "" {
				return nil, fmt.Errorf("line %d: want a letter, a number and a sentence inside a section: %q", n+1, line)
			}
			id := section + "-" + m[1]
			if seen[id] {
				return nil, fmt.Errorf("line %d: statement %s stands twice", n+1, id)
			}
			seen[id] = true
			all = append(all, Statement{ID: id, Section: section, Text: m[2]})
		}
	}
	return all, nil
}

// Outcome is what a test run said of one statement.
type Outcome string

const (
	Pass       Outcome = "pass"
	Fail       Outcome = "FAIL"
	Skipped    Outcome = "skipped"
	NotCovered Outcome = "not covered"
)

// Results maps a statement's ID to its outcome; what no test mentions is absent.
type Results map[string]Outcome

// Of returns the outcome of one statement.
func (r Results) Of(id string) Outcome {
	if outcome, ok := r[id]; ok {
		return outcome
	}
	return NotCovered
}

// Count returns how many of the statements had each outcome.
func (r Results) Count(all []Statement) map[Outcome]int {
	count := map[Outcome]int{}
	for _, s := range all {
		count[r.Of(s.ID)]++
	}
	return count
}

var statementID = regexp.MustCompile(`^((?:9|SSH)[0-9.]*-[CKU]\d+)(?:[_ ]|$)`)

// Read takes the output of `go test -json`. A statement tested more than once passes only when every test of it passed.
// It returns an error when the stream is not one, or holds no test at all: a build that failed must not look like success.
func Read(stream io.Reader, onOutput func(string)) (Results, error) {
	results := Results{}
	tests := 0
	lines := bufio.NewScanner(stream)
	lines.Buffer(make([]byte, 1<<20), 1<<24)
	for lines.Scan() {
		var event struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			onOutput(lines.Text() + "\n") // the compiler's messages are no JSON
			continue
		}
		switch event.Action {
		case "output", "build-output":
			onOutput(event.Output)
		case "pass", "fail", "skip":
			if event.Test != "" {
				tests++
				results.record(event.Test, event.Action)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read test events: %w", err)
	}
	if tests == 0 {
		return nil, errors.New("no test ran; the output above says why")
	}
	return results, nil
}

// rank orders outcomes by how much they weigh against others of the same statement.
var rank = map[Outcome]int{NotCovered: 0, Pass: 1, Skipped: 2, Fail: 3}

func (r Results) record(test, action string) {
	outcome := map[string]Outcome{"pass": Pass, "fail": Fail, "skip": Skipped}[action]
	for _, part := range strings.Split(test, "/") {
		m := statementID.FindStringSubmatch(part)
		if m != nil && rank[outcome] > rank[r.Of(m[1])] {
			r[m[1]] = outcome
		}
	}
}
