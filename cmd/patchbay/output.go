package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

const defaultName = "default"

func addNameFlag(flags *pflag.FlagSet, name *string) {
	flags.StringVar(name, "name", defaultName, "name of the local cluster")
}

// outputFormat is the value of --output: text for people, or json.
type outputFormat string

func (o *outputFormat) addFlag(flags *pflag.FlagSet) {
	*o = "text"
	flags.VarP(o, "output", "o", "text or json")
}

func (o *outputFormat) String() string { return string(*o) }
func (o *outputFormat) Type() string   { return "format" }

func (o *outputFormat) Set(value string) error {
	if value != "text" && value != "json" {
		return fmt.Errorf("choose text or json")
	}
	*o = outputFormat(value)
	return nil
}

// print writes a value as JSON, or calls text.
func (o *outputFormat) print(w io.Writer, value any, text func(io.Writer)) error {
	if *o != "json" {
		text(w)
		return nil
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
