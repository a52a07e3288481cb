package place

import (
	"strings"
	"testing"

	virtv1 "kubevirt.io/api/core/v1"
)

func TestChassis(t *testing.T) {
	first, second := Launcher{Pod: "p0", Node: "a"}, Launcher{Pod: "p1", Node: "b", Migration: "m1"}
	third, back := Launcher{Pod: "p2", Node: "c", Migration: "m2"}, Launcher{Pod: "p2", Node: "a", Migration: "m2"}
	on := func(node string, m *virtv1.VirtualMachineInstanceMigrationState) virtv1.VirtualMachineInstanceStatus {
		return virtv1.VirtualMachineInstanceStatus{NodeName: node, MigrationState: m}
	}
	moving := func(uid string, change ...func(*virtv1.VirtualMachineInstanceMigrationState)) *virtv1.VirtualMachineInstanceMigrationState {
		m := &virtv1.VirtualMachineInstanceMigrationState{MigrationUID: "m1", SourceNode: "a", SourcePod: "p0", TargetNode: "b"}
		if uid == "m2" {
			m = &virtv1.VirtualMachineInstanceMigrationState{MigrationUID: "m2", SourceNode: "b", SourcePod: "p1", TargetNode: "c"}
		}
		for _, c := range change {
			c(m)
		}
		return m
	}
	completed := func(m *virtv1.VirtualMachineInstanceMigrationState) { m.Completed = true }
	failed := func(m *virtv1.VirtualMachineInstanceMigrationState) { m.Completed, m.Failed = true, true }
	cases := map[string]struct {
		status virtv1.VirtualMachineInstanceStatus
		pods   []Launcher
		want   string
	}{
		"no pod":                        {on("", nil), nil, ""},
		"starts":                        {on("", nil), []Launcher{first}, "a"},
		"runs":                          {on("a", nil), []Launcher{first}, "a"},
		"target scheduled":              {on("a", nil), []Launcher{first, second}, "a,b"},
		"moves":                         {on("a", moving("m1")), []Launcher{first, second}, "a,b"},
		"moved, status behind":          {on("a", moving("m1", completed)), []Launcher{first, second}, "b"},
		"moved":                         {on("b", moving("m1", completed)), []Launcher{first, second}, "b"},
		"moved, source gone":            {on("b", moving("m1", completed)), []Launcher{second}, "b"},
		"source gone before the status": {on("a", moving("m1")), []Launcher{second}, "b"},
		"failed":                        {on("a", moving("m1", failed)), []Launcher{first, second}, "a"},
		"failed, tried again":           {on("a", moving("m1", failed)), []Launcher{first, second, third}, "a,c"},
		"moves on":                      {on("b", moving("m2")), []Launcher{second, third}, "b,c"},
		"moves on, status behind":       {on("b", moving("m1", completed)), []Launcher{second, third}, "b,c"},
		"moves back":                    {on("b", moving("m1", completed)), []Launcher{second, back}, "b,a"},
		"moves back while leaving":      {on("b", moving("m1", completed)), []Launcher{first, second, back}, "b,a"},
		"moved twice":                   {on("c", moving("m2", completed)), []Launcher{second, third}, "c"},
		"moved twice, status behind":    {on("b", moving("m2", completed)), []Launcher{second, third}, "c"},
		"moved twice, seen in disorder": {on("c", moving("m2", completed)), []Launcher{third, second}, "c"},
		"machine gone":                  {on("", nil), []Launcher{first}, "a"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			vmi := &virtv1.VirtualMachineInstance{Status: c.status}
			if got := strings.Join(Chassis(vmi, c.pods), ","); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
