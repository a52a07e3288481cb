// Command report reads `go test -json` of the statement tests from standard input and prints one line per statement and the
// counts. It exits with 1 when a statement failed or no test ran.
//
//	go test -json ./test/chapter9 | go run ./test/chapter9/report [-output json] [-verbose]
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"patchbay/test/chapter9/statement"
)

func main() {
	output := flag.String("output", "text", "text or json")
	verbose := flag.Bool("verbose", false, "also pass on what the tests print")
	flag.Parse()
	failed, err := run(os.Stdin, os.Stdout, *output, *verbose)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report: "+err.Error())
	}
	if failed || err != nil {
		os.Exit(1)
	}
}

type row struct {
	Statement string            `json:"statement"`
	Outcome   statement.Outcome `json:"outcome"`
	Text      string            `json:"text"`
}

func run(in io.Reader, out io.Writer, format string, verbose bool) (failed bool, err error) {
	all, err := statement.All()
	if err != nil {
		return false, err
	}
	results, err := statement.Read(in, func(line string) {
		if verbose {
			fmt.Fprint(os.Stderr, line)
		}
	})
	if err != nil {
		return false, err
	}
	count := results.Count(all)
	rows := make([]row, len(all))
	for i, s := range all {
		rows[i] = row{s.ID, results.Of(s.ID), s.Text}
	}
	if format == "json" {
		err = json.NewEncoder(out).Encode(map[string]any{"statements": rows, "count": count, "total": len(all)})
	} else {
		err = printTable(out, rows, count)
	}
	return count[statement.Fail] > 0, err
}

func printTable(out io.Writer, rows []row, count map[statement.Outcome]int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Statement, r.Outcome, r.Text)
	}
	fmt.Fprintf(w, "\n%d statements: %d pass, %d fail, %d skipped, %d not covered\n", len(rows),
		count[statement.Pass], count[statement.Fail], count[statement.Skipped], count[statement.NotCovered])
	return w.Flush()
}
