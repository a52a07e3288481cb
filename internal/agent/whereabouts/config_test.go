package whereabouts

import (
	"strings"
	"testing"
)

func TestParseRefuses(t *testing.T) {
	cases := map[string]struct{ ipam, want string }{
		"no range":          {`{}`, `no range; write one as "range": "10.200.5.0/24"`},
		"no subnet":         {`{"range":"10.0.0.1"}`, `range "10.0.0.1": is not a subnet such as 10.200.5.0/24`},
		"start outside":     {`{"range":"10.0.0.0/24","range_start":"10.0.1.7"}`, "range_start 10.0.1.7 is outside of 10.0.0.0/24"},
		"end before start":  {`{"range":"10.0.0.0/24","range_start":"10.0.0.9","range_end":"10.0.0.5"}`, "its end 10.0.0.5 lies before its start 10.0.0.9"},
		"bad exclude":       {`{"range":"10.0.0.0/24","exclude":["ten"]}`, `exclude: "ten" is neither an address nor a subnet`},
		"bad gateway":       {`{"range":"10.0.0.0/24","gateway":"x"}`, "gateway:"},
		"bad fixed address": {`{"addresses":[{"address":"10.0.0.1"}]}`, "addresses:"},
		"slices":            {`{"range":"10.0.0.0/24","node_slice_size":"/28"}`, "node_slice_size is not served"},
		"a bad second":      {`{"range":"10.0.0.0/24","ipRanges":[{"range":"fd00::/130"}]}`, `range "fd00::/130"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := parse([]byte(`{"cniVersion":"1.0.0","ipam":` + c.ipam + `}`)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// The ends of a range, in every way to write them.
func TestRanges(t *testing.T) {
	cases := map[string]struct{ ipam, first, last, pool string }{
		"a subnet":                 {`"range":"10.200.5.0/24"`, "10.200.5.1", "10.200.5.254", "10.200.5.0-24"},
		"an address in it":         {`"range":"192.168.2.225/28"`, "192.168.2.225", "192.168.2.238", "192.168.2.224-28"},
		"ends":                     {`"range":"10.0.0.0/24","range_start":"10.0.0.10","range_end":"10.0.0.20"`, "10.0.0.10", "10.0.0.20", "10.0.0.0-24"},
		"ends that nobody can be":  {`"range":"10.0.0.0/24","range_start":"10.0.0.0","range_end":"10.0.0.255"`, "10.0.0.1", "10.0.0.254", "10.0.0.0-24"},
		"in one word":              {`"range":"10.0.0.10-10.0.0.20/24"`, "10.0.0.10", "10.0.0.20", "10.0.0.0-24"},
		"two addresses":            {`"range":"10.0.0.0/31"`, "10.0.0.0", "10.0.0.1", "10.0.0.0-31"},
		"IPv6":                     {`"range":"fd00:5::/64","range_end":"fd00:5::f"`, "fd00:5::1", "fd00:5::f", "fd00-5--0-64"},
		"IPv6 at the very start":   {`"range":"::/120"`, "::1", "::fe", "0--0-120"},
		"of a network of its name": {`"range":"10.0.0.0/30","network_name":"storage"`, "10.0.0.1", "10.0.0.2", "storage-10.0.0.0-30"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, err := parse([]byte(`{"ipam":{` + c.ipam + `}}`))
			if err != nil {
				t.Fatal(err)
			}
			r := s.ranges[0]
			if r.first.String() != c.first || r.last.String() != c.last || poolName(s.network, r.subnet) != c.pool {
				t.Errorf("%s to %s in pool %s, want %s to %s in %s", r.first, r.last, poolName(s.network, r.subnet), c.first, c.last, c.pool)
			}
		})
	}
}
