package qmp

import "context"

// ServeNBD opens QEMU's NBD server on a listening socket that was given under a name.
func (m Machine) ServeNBD(ctx context.Context, socket string) error {
	address := map[string]any{"type": "fd", "data": map[string]any{"str": socket}}
	return m.do(ctx, "nbd-server-start", map[string]any{"addr": address})
}

// ExportNBD offers a block node for writing; its name is the export's.
func (m Machine) ExportNBD(ctx context.Context, node string) error {
	return m.do(ctx, "block-export-add", map[string]any{"type": "nbd", "id": "export-" + node, "node-name": node, "name": node, "writable": true})
}

// StopNBD closes the server and its exports.
func (m Machine) StopNBD(ctx context.Context) error { return m.do(ctx, "nbd-server-stop", nil) }

// AddNBD makes a block node of an export, over a connected socket that was given under a name.
func (m Machine) AddNBD(ctx context.Context, node, export, socket string) error {
	return m.do(ctx, "blockdev-add", map[string]any{
		"driver": "nbd", "node-name": node, "export": export, "server": map[string]any{"type": "fd", "str": socket},
	})
}

// RemoveNode removes a block node.
func (m Machine) RemoveNode(ctx context.Context, node string) error {
	return m.do(ctx, "blockdev-del", map[string]any{"node-name": node})
}

// How much of a node Mirror copies.
const (
	MirrorAll = "full" // all that the guest sees
	MirrorTop = "top"  // what was written above the backing file; the target has the same one
)

// Mirror copies a node, and then all that is written to it, to another one; its id is the job's. Speed is in bytes per second; 0 is
// unlimited.
func (m Machine) Mirror(ctx context.Context, job, node, target, how string, speed int64) error {
	return m.do(ctx, "blockdev-mirror", map[string]any{
		"job-id": job, "device": node, "target": target, "sync": how, "speed": speed,
		// A guest that writes faster than the network would never be ready otherwise.
		"copy-mode": "write-blocking", "auto-finalize": true, "auto-dismiss": true,
	})
}

// EndMirror ends a job: at a moment when both sides are equal or, by force, at once.
func (m Machine) EndMirror(ctx context.Context, job string, force bool) error {
	return m.do(ctx, "block-job-cancel", map[string]any{"device": job, "force": force})
}

// BlockJob is a job on a block node.
type BlockJob struct {
	ID     string `json:"device"`
	Length int64  `json:"len"`    // bytes
	Offset int64  `json:"offset"` // bytes done
	Ready  bool   `json:"ready"`  // both sides are equal, and stay so
}

// BlockJobs lists the jobs.
func (m Machine) BlockJobs(ctx context.Context) (jobs []BlockJob, err error) {
	err = m.Execute(ctx, Command{Name: "query-block-jobs"}, &jobs)
	return jobs, err
}
