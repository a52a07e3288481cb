package main

import "strings"

// exitsKey marks the exit codes of a command in its annotations, for the reference.
const exitsKey = "patchbay.io/exit-codes"

// exits says what a command's exit codes mean, one a line. Commands without are done (0) or not (1).
func exits(codes ...string) map[string]string {
	return map[string]string{exitsKey: strings.Join(codes, "\n")}
}
