package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"patchbay/test/local"
)

// measureUp starts the cluster from nothing, with everything built.
func measureUp(ctx context.Context, b *bench) ([]row, error) {
	left, err := local.At(clusterName)
	if err != nil {
		return nil, err
	}
	if err := left.Down(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	cluster, err := local.Up(ctx, clusterName, 2)
	if err != nil {
		return nil, err
	}
	b.cluster = cluster
	return []row{{Figure: "up, 2 nodes, to all Ready", Unit: "s", Ours: time.Since(begin).Seconds(), Goal: "≤ 15"}}, nil
}

// process is one line of `patchbay status --output json`.
type process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
}

// measureControlPlane adds up what every component keeps in memory (PSS: pages shared by processes are counted once).
func measureControlPlane(ctx context.Context, b *bench) ([]row, error) {
	out, err := b.cluster.Patchbay(ctx, "status", "--name", clusterName, "--output", "json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Components []process `json:"components"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return nil, err
	}
	var control, node float64
	var rows []row
	for _, p := range status.Components {
		if p.PID == 0 {
			continue
		}
		mib, err := pss(p.PID, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		switch {
		case strings.HasPrefix(p.Name, "node-1/"):
			node += mib
		case !strings.Contains(p.Name, "/"):
			control += mib
		}
		if p.Name == "controller" || p.Name == "node-1/agent" {
			rows = append(rows, row{Figure: "memory of " + p.Name + " (PSS)", Unit: "MiB", Ours: mib})
		}
	}
	return append(rows,
		row{Figure: "memory of the whole control plane (PSS)", Unit: "MiB", Ours: control},
		row{Figure: "memory of one node's components (PSS)", Unit: "MiB", Ours: node}), nil
}

var mappingLine = regexp.MustCompile(`^[0-9a-f]+-[0-9a-f]+ `)

// pss adds up a process's proportional set size in MiB, without the mappings that leaveOut names by their size in KiB.
func pss(pid int, leaveOut func(sizeKiB int) bool) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	total, size := 0, 0
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		switch {
		case mappingLine.MatchString(line) || len(fields) < 2:
			size = 0
		case fields[0] == "Size:":
			size, err = strconv.Atoi(fields[1])
		case fields[0] == "Pss:":
			if leaveOut == nil || !leaveOut(size) {
				var kib int
				kib, err = strconv.Atoi(fields[1])
				total += kib
			}
		}
		if err != nil {
			return 0, fmt.Errorf("smaps of %d: %w", pid, err)
		}
	}
	return float64(total) / 1024, nil
}
