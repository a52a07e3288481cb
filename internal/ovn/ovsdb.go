package ovn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"patchbay/internal/ovn/nb"
)

// Endpoint is where a database server listens: "unix:PATH", "tcp:HOST:PORT" or "ssl:HOST:PORT" with TLS set.
type Endpoint struct {
	Address string
	TLS     *tls.Config
}

// connectTimeout bounds a connection with its first copy of the database; transactTimeout one transaction.
const (
	connectTimeout  = 30 * time.Second
	transactTimeout = 30 * time.Second
	probeInterval   = 10 * time.Second
)

// DialOVSDB connects to a Northbound database server.
func DialOVSDB(e Endpoint, log *slog.Logger) Dial {
	return func(ctx context.Context, changed func(Change)) (Database, error) {
		c, err := newClient(e, log)
		if err != nil {
			return nil, err
		}
		return connectOVSDB(ctx, c, e, changed)
	}
}

func newClient(e Endpoint, log *slog.Logger) (client.Client, error) {
	db, err := nb.FullDatabaseModel()
	if err != nil {
		return nil, err
	}
	// Names of these tables are not unique in the schema, so libovsdb does not index them by itself.
	byName := []model.ClientIndex{{Columns: []model.ColumnKey{{Column: "name"}}}}
	db.SetIndexes(map[string][]model.ClientIndex{
		nb.LogicalSwitchTable: byName, nb.LogicalRouterTable: byName, nb.LoadBalancerTable: byName,
	})
	quiet := logr.FromSlogHandler(log.With("component", "libovsdb").Handler())
	options := []client.Option{client.WithEndpoint(e.Address), client.WithLogger(&quiet)}
	if e.TLS != nil {
		options = append(options, client.WithTLSConfig(e.TLS))
	}
	return client.NewOVSDBClient(db, options...)
}

// ovsdbDatabase is one connection. It never reconnects: the Store dials anew and compares everything.
type ovsdbDatabase struct {
	client client.Client
	cache  *cache.TableCache
	lost   chan struct{}
}

func connectOVSDB(ctx context.Context, c client.Client, e Endpoint, changed func(Change)) (Database, error) {
	db := &ovsdbDatabase{client: c, lost: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.Connect(ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", e.Address, err)
	}
	go func() {
		<-c.DisconnectNotify()
		close(db.lost)
	}()
	if _, err := c.MonitorAll(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("read the northbound database at %s: %w", e.Address, err)
	}
	db.cache = c.Cache()
	if db.cache == nil {
		return nil, fmt.Errorf("read the northbound database at %s: connection closed", e.Address)
	}
	db.cache.AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(table string, m model.Model) { changed(Change{Table: table, New: m}) },
		UpdateFunc: func(table string, old, m model.Model) { changed(Change{Table: table, Old: old, New: m}) },
		DeleteFunc: func(table string, m model.Model) { changed(Change{Table: table, Old: m}) },
	})
	go db.probe()
	return db, nil
}

// probe closes a connection whose other end is silently gone.
func (d *ovsdbDatabase) probe() {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-d.lost:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeInterval)
		err := d.client.Echo(ctx)
		cancel()
		if err != nil {
			d.client.Close()
		}
	}
}

func (d *ovsdbDatabase) Lost() <-chan struct{} { return d.lost }

func (d *ovsdbDatabase) Close() {
	d.client.Close()
	<-d.lost
}

func (d *ovsdbDatabase) Row(table, uuid string) model.Model {
	if t := d.cache.Table(table); t != nil {
		return t.Row(uuid)
	}
	return nil
}

func (d *ovsdbDatabase) Has(table, uuid string) bool {
	t := d.cache.Table(table)
	return t != nil && t.HasRow(uuid)
}

func (d *ovsdbDatabase) Rows(table string) []model.Model {
	t := d.cache.Table(table)
	if t == nil {
		return nil
	}
	var rows []model.Model
	for _, m := range t.Rows() {
		rows = append(rows, m)
	}
	return rows
}

func (d *ovsdbDatabase) Named(table, name string) []string {
	probe, err := d.cache.DatabaseModel().NewModel(table)
	if err != nil {
		return nil
	}
	nb.SetName(probe, name)
	found, err := d.cache.Table(table).RowsByModels([]model.Model{probe})
	if err != nil {
		return nil
	}
	var uuids []string
	for uuid := range found {
		uuids = append(uuids, uuid)
	}
	return uuids
}

func (d *ovsdbDatabase) Apply(ctx context.Context, ops []Op) error {
	operations := make([]ovsdb.Operation, 0, len(ops))
	for _, op := range ops {
		o, err := d.operation(op)
		if err != nil {
			return fmt.Errorf("%s %s: %w", op.Kind, op.Table, err)
		}
		operations = append(operations, o)
	}
	ctx, cancel := context.WithTimeout(ctx, transactTimeout)
	defer cancel()
	results, err := d.client.Transact(ctx, operations...)
	if err != nil {
		// Whether it was done is not known; a new connection shows.
		d.Close()
		return err
	}
	failures, err := ovsdb.CheckOperationResults(results, operations)
	for _, f := range failures {
		err = errors.Join(err, f)
	}
	return err
}

func (d *ovsdbDatabase) operation(op Op) (ovsdb.Operation, error) {
	where := []ovsdb.Condition{{Column: "_uuid", Function: ovsdb.ConditionEqual, Value: ovsdb.UUID{GoUUID: op.UUID}}}
	switch op.Kind {
	case Insert:
		row, err := d.columns(op.Table, op.Model, nil)
		return ovsdb.Operation{Op: ovsdb.OperationInsert, Table: op.Table, UUID: op.UUID, Row: row}, err
	case Update:
		row, err := d.columns(op.Table, op.Model, op.Columns)
		return ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: op.Table, Row: row, Where: where}, err
	case Delete:
		return ovsdb.Operation{Op: ovsdb.OperationDelete, Table: op.Table, Where: where}, nil
	}
	mutator := ovsdb.MutateOperationInsert
	if op.Kind == Remove {
		mutator = ovsdb.MutateOperationDelete
	}
	members := make([]any, len(op.Members))
	for i, uuid := range op.Members {
		members[i] = ovsdb.UUID{GoUUID: uuid}
	}
	mutation := ovsdb.Mutation{Column: op.Column, Mutator: mutator, Value: ovsdb.OvsSet{GoSet: members}}
	return ovsdb.Operation{Op: ovsdb.OperationMutate, Table: op.Table, Where: where, Mutations: []ovsdb.Mutation{mutation}}, nil
}

// columns is a model as the server wants it; all columns that are not empty, or those named.
func (d *ovsdbDatabase) columns(table string, m model.Model, columns []string) (ovsdb.Row, error) {
	info, err := d.cache.DatabaseModel().NewModelInfo(m)
	if err != nil {
		return nil, err
	}
	var fields []any
	for _, column := range columns {
		fields = append(fields, nb.Column(m, column))
	}
	row, err := d.cache.Mapper().NewRow(info, fields...)
	delete(row, "_uuid")
	return row, err
}
