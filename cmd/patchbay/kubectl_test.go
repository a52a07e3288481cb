package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTakeName(t *testing.T) {
	cases := map[string]struct {
		args []string
		name string
		rest []string
		err  string
	}{
		"none":             {nil, "default", nil, ""},
		"no name":          {[]string{"get", "pods", "--name", "x"}, "default", []string{"get", "pods", "--name", "x"}, ""},
		"name":             {[]string{"--name", "a", "get", "pods"}, "a", []string{"get", "pods"}, ""},
		"with equals sign": {[]string{"--name=a", "get"}, "a", []string{"get"}, ""},
		"dashes":           {[]string{"--name", "a", "--", "--help"}, "a", []string{"--help"}, ""},
		"dashes only":      {[]string{"--", "get"}, "default", []string{"get"}, ""},
		"dashes inside":    {[]string{"exec", "p", "--", "ls"}, "default", []string{"exec", "p", "--", "ls"}, ""},
		"name is missing":  {[]string{"--name"}, "", nil, "--name needs the name of a cluster"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			gotName, rest, err := takeName(c.args)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if gotName != c.name || got != c.err {
				t.Errorf("name %q, error %q", gotName, got)
			}
			if diff := cmp.Diff(c.rest, rest, cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
				t.Errorf("rest (-want +got):\n%s", diff)
			}
		})
	}
}
