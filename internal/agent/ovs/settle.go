package ovs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"patchbay/internal/agent/ovs/vswitch"
)

// settleTime is how long ovs-vswitchd may take to do what the database says.
const settleTime = 10 * time.Second

// Settle returns once ovs-vswitchd has carried out all that was written before: devices of ports that were removed are gone,
// those of new ones are there. It counts next_cfg up and waits for cur_cfg, as ovs-vsctl does.
func (c *Client) Settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, errors.New("ovs-vswitchd has not taken up the change; is it running?"))
	defer cancel()
	wanted, err := c.countUp(ctx)
	if err != nil {
		return err
	}
	for {
		changed := c.Changed()
		root, err := c.root()
		if err != nil {
			return err
		}
		if root.CurCfg >= wanted {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// countUp raises the number of the wanted configuration and returns it.
func (c *Client) countUp(ctx context.Context) (int, error) {
	root, err := c.root()
	if err != nil {
		return 0, err
	}
	operations, err := c.db.Where(root).Mutate(root, model.Mutation{Field: &root.NextCfg, Mutator: ovsdb.MutateOperationAdd, Value: 1})
	if err != nil {
		return 0, err
	}
	operations = append(operations, ovsdb.Operation{
		Op: ovsdb.OperationSelect, Table: vswitch.OpenvSwitchTable, Where: []ovsdb.Condition{}, Columns: []string{"next_cfg"}})
	results, err := c.db.Transact(ctx, operations...)
	if err == nil {
		_, err = ovsdb.CheckOperationResults(results, operations)
	}
	if err != nil {
		return 0, fmt.Errorf("ask the Open vSwitch database for a new configuration number: %w", err)
	}
	if rows := results[len(results)-1].Rows; len(rows) == 1 {
		switch number := rows[0]["next_cfg"].(type) {
		case float64:
			return int(number), nil
		case int:
			return number, nil
		}
	}
	return 0, errors.New("the Open vSwitch database did not tell the configuration's number")
}
