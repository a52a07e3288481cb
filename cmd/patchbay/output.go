package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

const defaultName = "default"

func addNameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", defaultName, "name of the local cluster")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("name", completeNames))
}

// outputFormat is the value of --output: text for people, or json.
type outputFormat string

func (o *outputFormat) addFlag(cmd *cobra.Command) {
	*o = "text"
	cmd.Flags().VarP(o, "output", "o", "text or json")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)))
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
