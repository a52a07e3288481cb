package nmstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// maxCaptures bounds what one policy may ask.
const maxCaptures = 64

// Render replaces the references in a policy's desired state by what its captures find in the current state. It returns the
// rendered document and each capture's result, both in YAML. Captures that an earlier attempt resolved are given in cached.
func Render(captures map[string]string, cached map[string][]byte, desired []byte, current State) (rendered []byte, states map[string][]byte, err error) {
	if len(captures) == 0 && !strings.Contains(string(desired), "{{") {
		return desired, nil, nil
	}
	if len(captures) > maxCaptures {
		return nil, nil, invalid("capture has %d entries; at most %d are supported", len(captures), maxCaptures)
	}
	data, err := json.Marshal(current)
	if err != nil {
		return nil, nil, err
	}
	c := capturer{expressions: captures, done: map[string]any{}, busy: map[string]bool{}}
	if err := json.Unmarshal(data, &c.current); err != nil {
		return nil, nil, err
	}
	states = map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(captures)) {
		if raw, ok := cached[name]; ok {
			var value any
			if err := yaml.Unmarshal(raw, &value); err != nil {
				return nil, nil, fmt.Errorf("capture %s of an earlier attempt: %w", name, err)
			}
			c.done[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(captures)) {
		value, err := c.resolve(name)
		if err != nil {
			return nil, nil, err
		}
		if states[name], err = yaml.Marshal(value); err != nil {
			return nil, nil, err
		}
	}
	var document any
	if err := yaml.Unmarshal(desired, &document); err != nil {
		return nil, nil, invalid("the desired state is not YAML: %v", err)
	}
	if document, err = c.substitute(document); err != nil {
		return nil, nil, err
	}
	rendered, err = yaml.Marshal(document)
	return rendered, states, err
}

type capturer struct {
	expressions map[string]string
	current     any
	done        map[string]any
	busy        map[string]bool
}

// resolve evaluates a capture once, those that it refers to first.
func (c *capturer) resolve(name string) (any, error) {
	if value, ok := c.done[name]; ok {
		return value, nil
	}
	expression, ok := c.expressions[name]
	if !ok {
		return nil, invalid("capture.%s is not defined", name)
	}
	if c.busy[name] {
		return nil, invalid("capture.%s depends on itself", name)
	}
	c.busy[name] = true
	value, err := c.evaluate(expression)
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) {
			return nil, err
		}
		return nil, invalid("capture.%s %q: %v", name, expression, err)
	}
	c.done[name] = value
	return value, nil
}

// evaluate runs "path", "path == value", "path := value", each after "capture.x |" or on the current state.
func (c *capturer) evaluate(expression string) (any, error) {
	input := c.current
	stages := splitOutsideQuotes(expression, "|")
	for n, stage := range stages {
		stage = strings.TrimSpace(stage)
		if n == 0 && len(stages) > 1 {
			value, err := c.operand(stage)
			if err != nil {
				return nil, err
			}
			input = value
			continue
		}
		value, err := c.stage(stage, input)
		if err != nil {
			return nil, err
		}
		input = value
	}
	return input, nil
}

func (c *capturer) stage(stage string, input any) (any, error) {
	for _, operator := range []string{"==", ":="} {
		parts := splitOutsideQuotes(stage, operator)
		if len(parts) == 1 {
			continue
		}
		if len(parts) > 2 {
			return nil, fmt.Errorf("%q stands twice in one stage", operator)
		}
		path, err := parsePath(strings.TrimSpace(parts[0]))
		if err != nil {
			return nil, err
		}
		value, err := c.operand(strings.TrimSpace(parts[1]))
		if err != nil {
			return nil, err
		}
		if operator == "==" {
			kept, _ := filter(input, path, value)
			return kept, nil
		}
		return replace(input, path, value)
	}
	path, err := parsePath(stage)
	if err != nil {
		return nil, err
	}
	if path[0] == "capture" {
		return c.operand(stage)
	}
	kept, found := filter(input, path, nil)
	if !found {
		return nil, fmt.Errorf("the state has no %s", stage)
	}
	return kept, nil
}

// operand is a literal or a reference to another capture.
func (c *capturer) operand(text string) (any, error) {
	var literal any
	if json.Unmarshal([]byte(text), &literal) == nil {
		return literal, nil
	}
	path, err := parsePath(text)
	if err != nil {
		return nil, err
	}
	if path[0] != "capture" || len(path) < 2 {
		return nil, fmt.Errorf("%q is neither a quoted text, a number, true, false nor a capture", text)
	}
	value, err := c.resolve(path[1])
	if err != nil {
		return nil, err
	}
	return lookup(value, path[2:], text)
}

func parsePath(text string) ([]string, error) {
	path := strings.Split(text, ".")
	for _, step := range path {
		if step == "" || strings.ContainsAny(step, " \t\"'=:|") {
			return nil, fmt.Errorf("%q is no path such as interfaces.name", text)
		}
	}
	return path, nil
}

// splitOutsideQuotes splits at a separator that is not part of a quoted text.
func splitOutsideQuotes(text, separator string) []string {
	var parts []string
	quoted, start := false, 0
	for n := 0; n < len(text); n++ {
		switch {
		case text[n] == '"':
			quoted = !quoted
		case !quoted && strings.HasPrefix(text[n:], separator):
			parts = append(parts, text[start:n])
			start = n + len(separator)
			n = start - 1
		}
	}
	return append(parts, text[start:])
}

// lookup follows a path; numbers choose elements of lists.
func lookup(value any, path []string, text string) (any, error) {
	for _, step := range path {
		switch node := value.(type) {
		case map[string]any:
			next, ok := node[step]
			if !ok {
				return nil, unfit("%s: there is no %q", text, step)
			}
			value = next
		case []any:
			n, err := strconv.Atoi(step)
			if err != nil || n < 0 || n >= len(node) {
				return nil, unfit("%s: the list has %d elements and no element %q", text, len(node), step)
			}
			value = node[n]
		default:
			return nil, unfit("%s: nothing lies below %q", text, step)
		}
	}
	return value, nil
}

// filter keeps what leads to the path, and of lists the elements in which it has the value; nil keeps all that have the path.
func filter(value any, path []string, want any) (any, bool) {
	if list, ok := value.([]any); ok {
		kept := []any{}
		for _, element := range list {
			if e, found := filterElement(element, path, want); found {
				kept = append(kept, e)
			}
		}
		return kept, len(kept) > 0
	}
	if len(path) == 0 {
		return value, want == nil || value == want
	}
	node, ok := value.(map[string]any)
	if !ok {
		return map[string]any{}, false
	}
	kept, found := filter(node[path[0]], path[1:], want)
	if _, isList := kept.([]any); !isList && !found {
		return map[string]any{}, false
	}
	return map[string]any{path[0]: kept}, found // a list in which nothing was found stays, empty
}

// filterElement keeps an element of a list as a whole.
func filterElement(element any, path []string, want any) (any, bool) {
	if len(path) == 0 {
		return element, want == nil || element == want
	}
	node, ok := element.(map[string]any)
	if !ok {
		return nil, false
	}
	value, ok := node[path[0]]
	if !ok {
		return nil, false
	}
	if _, found := filter(value, path[1:], want); !found {
		return nil, false
	}
	return element, true
}

// replace sets the value at a path, in every element of lists on the way.
func replace(value any, path []string, to any) (any, error) {
	if list, ok := value.([]any); ok {
		out := make([]any, len(list))
		for n, element := range list {
			changed, err := replace(element, path, to)
			if err != nil {
				return nil, err
			}
			out[n] = changed
		}
		return out, nil
	}
	if len(path) == 0 {
		return to, nil
	}
	node, ok := value.(map[string]any)
	if value != nil && !ok {
		return nil, fmt.Errorf("nothing can be set below %q", path[0])
	}
	out := maps.Clone(node)
	if out == nil {
		out = map[string]any{}
	}
	below, err := replace(out[path[0]], path[1:], to)
	if err != nil {
		return nil, err
	}
	out[path[0]] = below
	return out, nil
}

// substitute replaces scalars that are a reference as a whole.
func (c *capturer) substitute(value any) (any, error) {
	switch node := value.(type) {
	case map[string]any:
		for key, below := range node {
			changed, err := c.substitute(below)
			if err != nil {
				return nil, err
			}
			node[key] = changed
		}
	case []any:
		for n, below := range node {
			changed, err := c.substitute(below)
			if err != nil {
				return nil, err
			}
			node[n] = changed
		}
	case string:
		if !strings.Contains(node, "{{") {
			return value, nil
		}
		inner, ok := strings.CutPrefix(strings.TrimSpace(node), "{{")
		inner, closed := strings.CutSuffix(inner, "}}")
		if !ok || !closed || strings.Contains(inner, "{{") {
			return nil, invalid("%q: a reference must be the whole value", node)
		}
		reference := strings.TrimSpace(inner)
		if !strings.HasPrefix(reference, "capture.") {
			return nil, invalid("%q: a reference begins with capture", node)
		}
		return c.operand(reference)
	}
	return value, nil
}
