// Command bench measures the product on a local cluster of its own and prints one table. Where a figure has a bare engine (plain QEMU,
// plain OVN ports), the engine is measured in the same run, so that the ratio means something on a noisy machine.
//
//	go run ./test/bench [-output json] [-only up,cni]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"patchbay/test/local"
)

// clusterName keeps the benchmark's cluster apart from the user's.
const clusterName = "bench"

// row is one line of the table.
type row struct {
	Figure string  `json:"figure"`
	Unit   string  `json:"unit"`
	Ours   float64 `json:"patchbay"`
	// Bare is the engine's own figure in the same run; 0 when there is none.
	Bare float64 `json:"bare,omitempty"`
	Goal string  `json:"goal,omitempty"`
}

// measurement fills some rows. They run in order: the first one starts the cluster.
type measurement struct {
	name string
	run  func(ctx context.Context, b *bench) ([]row, error)
	// alone says that it needs no cluster.
	alone bool
}

var measurements = []measurement{
	{name: "up", run: measureUp},
	{name: "cni", run: measureCNI},
	{name: "boot", run: measureBoot},
	{name: "plug", run: measurePlug},
	{name: "overlay", run: measureOverlay},
	{name: "tenant", run: measureTenant},
	{name: "migrate", run: measureMigrate},
	{name: "stream", run: measureStream},
	{name: "memory", run: measureControlPlane},
	{name: "mac", run: measureMAC, alone: true},
	{name: "scale", run: measureScale, alone: true},
}

type bench struct {
	cluster *local.Cluster
}

func main() {
	output := flag.String("output", "text", "text or json")
	only := flag.String("only", "", "measurements to run, separated by commas (up runs before those that need a cluster)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rows, err := run(ctx, *only)
	if printErr := print(os.Stdout, rows, *output); err == nil {
		err = printErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, only string) (rows []row, err error) {
	b := &bench{}
	defer func() {
		if b.cluster == nil {
			return
		}
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if downErr := b.cluster.Down(down); err == nil {
			err = downErr
		}
	}()
	for _, m := range chosen(only) {
		fmt.Fprintf(os.Stderr, "measuring %s …\n", m.name)
		more, err := m.run(ctx, b)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return rows, nil
}

// chosen are the measurements of a list of names, and the one that starts the cluster if any of them needs it.
func chosen(only string) []measurement {
	if only == "" {
		return measurements
	}
	all := slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool { return !strings.Contains(","+only+",", ","+m.name+",") })
	if len(all) > 0 && all[0].name != measurements[0].name && slices.ContainsFunc(all, func(m measurement) bool { return !m.alone }) {
		all = append([]measurement{measurements[0]}, all...)
	}
	return all
}

func print(out io.Writer, rows []row, format string) error {
	if format == "json" {
		return json.NewEncoder(out).Encode(rows)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FIGURE\tPATCHBAY\tBARE ENGINE\tRATIO\tGOAL")
	for _, r := range rows {
		bare, ratio := "-", "-"
		if r.Bare != 0 {
			bare, ratio = fmt.Sprintf("%.4g %s", r.Bare, r.Unit), fmt.Sprintf("%.2f", r.Ours/r.Bare)
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\t%s\t%s\n", r.Figure, r.Ours, r.Unit, bare, ratio, r.Goal)
	}
	return w.Flush()
}
