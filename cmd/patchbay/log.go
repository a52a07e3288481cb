package main

import (
	"fmt"
	"io"
	"log/slog"
)

// newLogger makes the logger of a process that runs for long.
func newLogger(out io.Writer, format string) (*slog.Logger, error) {
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, nil)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
