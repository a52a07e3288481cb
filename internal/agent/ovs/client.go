// Package ovs is the agent's view of the node's Open vSwitch database: it plugs devices into the integration bridge for
// logical ports and waits until OVN has installed their flows. It must not touch devices.
package ovs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"patchbay/internal/agent/ovs/vswitch"
)

// IntegrationBridge is the bridge that ovn-controller programs.
const IntegrationBridge = "br-int"

const (
	connectTimeout     = 5 * time.Second
	longestReconnect   = time.Second
	transactionTimeout = 20 * time.Second
)

// Client is a connection to one database. It reconnects by itself; calls during an outage wait for it, changes for transactionTimeout.
type Client struct {
	db       client.Client
	endpoint string

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change of an interface, a bridge or the switch's own row
}

// Connect connects to a database ("unix:/run/openvswitch/db.sock") and reads what the agent needs of it. It waits for a
// server that is not running yet.
func Connect(ctx context.Context, endpoint string, log *slog.Logger) (*Client, error) {
	tables, err := vswitch.FullDatabaseModel()
	if err != nil {
		return nil, fmt.Errorf("models of the Open vSwitch database: %w", err)
	}
	logger := logr.FromSlogHandler(log.With("component", "ovsdb").Handler())
	db, err := client.NewOVSDBClient(tables,
		client.WithEndpoint(endpoint), client.WithReconnect(connectTimeout, forever()), client.WithLogger(&logger))
	if err != nil {
		return nil, fmt.Errorf("open the Open vSwitch database %s: %w", endpoint, err)
	}
	c := &Client{db: db, endpoint: endpoint, changed: make(chan struct{})}
	if err := firstConnect(ctx, db, log); err != nil {
		return nil, fmt.Errorf("connect to the Open vSwitch database %s (is ovsdb-server running?): %w", endpoint, err)
	}
	db.Cache().AddEventHandler(c.events())
	if err := c.monitor(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("read the Open vSwitch database %s: %w", endpoint, err)
	}
	return c, nil
}

// forever retries quickly and never gives up: libovsdb panics when a reconnection does.
func forever() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 50 * time.Millisecond
	b.MaxInterval = longestReconnect
	b.MaxElapsedTime = 0
	return b
}

func firstConnect(ctx context.Context, db client.Client, log *slog.Logger) error {
	said := false
	return backoff.Retry(func() error {
		attempt, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		err := db.Connect(attempt)
		if err != nil && !said {
			log.Warn("waiting for the Open vSwitch database", "error", err)
			said = true
		}
		return err
	}, backoff.WithContext(forever(), ctx))
}

// Close ends the connection.
func (c *Client) Close() { c.db.Close() }

// monitor leaves out the columns that change all the time, such as statistics.
func (c *Client) monitor(ctx context.Context) error {
	root, bridge, port, iface := &vswitch.OpenvSwitch{}, &vswitch.Bridge{}, &vswitch.Port{}, &vswitch.Interface{}
	_, err := c.db.Monitor(ctx, c.db.NewMonitor(
		client.WithTable(root, &root.ExternalIDs, &root.OtherConfig, &root.Bridges, &root.DatapathTypes, &root.CurCfg),
		client.WithTable(bridge, &bridge.Name, &bridge.Ports, &bridge.DatapathType, &bridge.FailMode,
			&bridge.STPEnable, &bridge.RSTPEnable, &bridge.McastSnoopingEnable, &bridge.ExternalIDs),
		client.WithTable(port, &port.Name, &port.Interfaces, &port.ExternalIDs, &port.OtherConfig, &port.Tag, &port.Trunks, &port.VLANMode),
		client.WithTable(iface, &iface.Name, &iface.Type, &iface.ExternalIDs, &iface.Error, &iface.Ofport,
			&iface.MAC, &iface.MTURequest, &iface.Options),
	))
	return err
}

func (c *Client) events() cache.EventHandler {
	notify := func(table string) {
		if table == vswitch.InterfaceTable || table == vswitch.BridgeTable || table == vswitch.OpenvSwitchTable {
			c.broadcast()
		}
	}
	return &cache.EventHandlerFuncs{
		AddFunc:    func(table string, _ model.Model) { notify(table) },
		UpdateFunc: func(table string, _, _ model.Model) { notify(table) },
		DeleteFunc: func(table string, _ model.Model) { notify(table) },
	}
}

func (c *Client) broadcast() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change of an interface, a bridge or the switch's own row. Ask for it before you look.
func (c *Client) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// create makes the operations that insert rows of any tables.
func (c *Client) create(rows ...model.Model) ([]ovsdb.Operation, error) {
	var operations []ovsdb.Operation
	for _, row := range rows {
		insert, err := c.db.Create(row)
		if err != nil {
			return nil, err
		}
		operations = append(operations, insert...)
	}
	return operations, nil
}

// transact does not give up what it has sent when the context ends: the cache would not know what is in the database, and who undoes
// it would miss it.
func (c *Client) transact(ctx context.Context, what string, operations []ovsdb.Operation) error {
	if len(operations) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s in the Open vSwitch database: %w", what, context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), transactionTimeout)
	defer cancel()
	results, err := c.db.Transact(ctx, operations...)
	if err == nil {
		var failed []ovsdb.OperationError
		if failed, err = ovsdb.CheckOperationResults(results, operations); err != nil && len(failed) > 0 {
			err = errors.Join(err, failed[0])
		}
	}
	if err != nil {
		return fmt.Errorf("%s in the Open vSwitch database: %w", what, err)
	}
	return nil
}
