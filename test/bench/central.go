package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"patchbay/internal/ovn"
)

// central are OVN's databases and northd, without a cluster: unix sockets in a directory.
type central struct {
	dir       string
	processes map[string]*exec.Cmd
}

func startCentral(ctx context.Context) (c *central, err error) {
	c = &central{processes: map[string]*exec.Cmd{}}
	if c.dir, err = os.MkdirTemp("", "pb-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	for _, db := range []string{"nb", "sb"} {
		if err := c.create(ctx, db); err != nil {
			return nil, err
		}
		if err := c.serve(ctx, db); err != nil {
			return nil, err
		}
	}
	return c, c.start(ctx, "northd", "ovn-northd", "--unixctl="+c.path("northd.ctl"), "-vconsole:off", "-vsyslog:off", "--ovnnb-db="+c.remote("nb"), "--ovnsb-db="+c.remote("sb"))
}

func (c *central) path(name string) string { return filepath.Join(c.dir, name) }
func (c *central) remote(db string) string { return "unix:" + c.path(db+".sock") }

func (c *central) endpoint(db string) ovn.Endpoint { return ovn.Endpoint{Address: c.remote(db)} }

func (c *central) create(ctx context.Context, db string) error {
	_, err := command(ctx, "ovsdb-tool", "create", c.path(db+".db"), "/usr/share/ovn/ovn-"+db+".ovsschema")
	return err
}

func (c *central) serve(ctx context.Context, db string) error {
	err := c.start(ctx, db, "ovsdb-server", "--unixctl="+c.path(db+".ctl"), "--remote=p"+c.remote(db), "-vconsole:off", "-vsyslog:off", c.path(db+".db"))
	if err != nil {
		return err
	}
	for {
		conn, err := net.Dial("unix", c.path(db+".sock"))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the database %s: %w", db, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *central) start(ctx context.Context, name string, words ...string) error {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), "OVN_RUNDIR="+c.dir, "OVS_RUNDIR="+c.dir, "OVN_LOGDIR="+c.dir)
	c.processes[name] = cmd
	return cmd.Start()
}

// wipe loses a database, as a disk would.
func (c *central) wipe(ctx context.Context, db string) error {
	stop(c.processes[db])
	for _, file := range []string{db + ".db", db + ".sock", "." + db + ".db.~lock~"} {
		_ = os.Remove(c.path(file))
	}
	if err := c.create(ctx, db); err != nil {
		return err
	}
	return c.serve(ctx, db)
}

func (c *central) stop() {
	for _, p := range c.processes {
		if p.Process != nil {
			stop(p)
		}
	}
	_ = os.RemoveAll(c.dir)
}

func (c *central) nbctl(ctx context.Context, args ...string) (string, error) {
	return command(ctx, append([]string{"ovn-nbctl", "--timeout=600", "--db=" + c.remote("nb")}, args...)...)
}

// sync waits until northd has brought everything to the Southbound database.
func (c *central) sync(ctx context.Context) error {
	_, err := c.nbctl(ctx, "--wait=sb", "sync")
	return err
}

// addChassis makes the rows that n nodes' ovn-controllers would make, beginning with a number.
func (c *central) addChassis(ctx context.Context, first, n int) error {
	args := []string{"ovn-sbctl", "--timeout=60", "--db=" + c.remote("sb")}
	for i := first; i < first+n; i++ {
		args = append(args, "--", "chassis-add", nodeName(i), "geneve", fmt.Sprintf("172.30.%d.%d", i/250, i%250+1))
	}
	_, err := command(ctx, args...)
	return err
}

func nodeName(i int) string { return "node-" + strconv.Itoa(i+1) }

// southboundRows counts the rows of the tables that grow with networks.
func (c *central) southboundRows(ctx context.Context) (int, error) {
	rows := 0
	for _, table := range []string{"Logical_Flow", "Logical_DP_Group", "Datapath_Binding", "Port_Binding", "Multicast_Group", "Address_Set", "Port_Group"} {
		out, err := command(ctx, "ovn-sbctl", "--timeout=600", "--db="+c.remote("sb"), "--bare", "--columns=_uuid", "list", table)
		if err != nil {
			return 0, err
		}
		rows += len(strings.Fields(out))
	}
	return rows, nil
}
