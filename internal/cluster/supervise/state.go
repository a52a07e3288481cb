package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// WaitsFor begins the message of a unit that waits for another one.
const WaitsFor = "waits for "

const stateSuffix = ".unit.json"

// fileName turns a unit's name into the name of a file.
func fileName(unit string) string { return strings.ReplaceAll(unit, "/", "-") }

func statePath(dir, unit string) string { return filepath.Join(dir, fileName(unit)+stateSuffix) }

// LogPath is the log file of a unit below the directory of logs.
func LogPath(logs, unit string) string { return filepath.Join(logs, fileName(unit)+".log") }

// ReadState reads one unit's state; a unit that was never seen has the phase Waiting.
func ReadState(dir, unit string) (State, error) {
	data, err := os.ReadFile(statePath(dir, unit))
	if errors.Is(err, fs.ErrNotExist) {
		return State{Name: unit, Phase: Waiting}, nil
	}
	if err != nil {
		return State{}, err
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("state of %s: %w", unit, err)
	}
	return s, nil
}

// ReadStates reads the states of all units in a directory, sorted by name. A missing directory has none.
func ReadStates(dir string) ([]State, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+stateSuffix))
	if err != nil {
		return nil, err
	}
	var states []State
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var s State
		if err := json.Unmarshal(data, &s); err != nil {
			return nil, fmt.Errorf("state file %s: %w", file, err)
		}
		states = append(states, s)
	}
	return states, nil
}

// WriteState replaces the file at once, so that a reader never sees half of it.
func WriteState(dir string, s State) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := statePath(dir, s.Name)
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Forget takes back what the states say about the work of units, but not which processes they are: a new supervisor has to find
// out. It is called while no supervisor runs.
func Forget(dir string) error {
	states, err := ReadStates(dir)
	if err != nil {
		return err
	}
	for _, s := range states {
		s.Phase, s.Message = Waiting, ""
		if err := WriteState(dir, s); err != nil {
			return err
		}
	}
	return nil
}
