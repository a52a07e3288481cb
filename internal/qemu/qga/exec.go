package qga

import (
	"context"
	"fmt"
	"time"
)

// execPoll is how often the end of a program is asked for: the agent has no event for it.
const execPoll = 100 * time.Millisecond

func (c *Client) waitExec(ctx context.Context, path string, pid int) (ExecResult, error) {
	poll := time.NewTicker(execPoll)
	defer poll.Stop()
	for {
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"` // base64, as encoding/json reads []byte
			Err      []byte `json:"err-data"`
		}
		if err := c.Execute(ctx, "guest-exec-status", map[string]any{"pid": pid}, &status); err != nil {
			return ExecResult{}, err
		}
		switch {
		case status.Exited && status.Signal != 0:
			return ExecResult{}, fmt.Errorf("%s in the guest was killed by signal %d", path, status.Signal)
		case status.Exited:
			return ExecResult{ExitCode: status.ExitCode, Stdout: status.Out, Stderr: status.Err}, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ExecResult{}, fmt.Errorf("wait for %s in the guest: %w", path, ctx.Err())
		}
	}
}
