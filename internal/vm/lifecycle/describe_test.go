package lifecycle

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	corev1 "k8s.io/api/core/v1"

	"patchbay/internal/qemu"
)

var timestamp = regexp.MustCompile(`"2026-[0-9T:-]+Z"`)

// describe says in one line what an action does.
func (w *world) describe(a Action) string {
	switch a := a.(type) {
	case Create:
		if pod, ok := a.Object.(*corev1.Pod); ok && qemu.AcceleratorOf(pod) != qemu.KVM {
			return "create " + name(a.Object) + " without KVM"
		}
		return "create " + name(a.Object)
	case Delete:
		if a.GraceSeconds != nil {
			return fmt.Sprintf("delete %s within %ds", name(a.Object), *a.GraceSeconds)
		}
		return "delete " + name(a.Object)
	case Event:
		return fmt.Sprintf("event %s %s: %s", a.Type, a.Reason, a.Message)
	case Patch:
		sub := ""
		if a.Status {
			sub = "/status"
		}
		return fmt.Sprintf("patch %s%s %s", name(a.From), sub, difference(a.From, a.To))
	}
	return fmt.Sprintf("%T", a)
}

func name(o Object) string {
	kind := strings.ToLower(fmt.Sprintf("%T", o))
	kind = kind[strings.LastIndex(kind, ".")+1:]
	kind = strings.NewReplacer("virtualmachineinstance", "vmi", "virtualmachine", "vm", "controllerrevision", "revision").Replace(kind)
	return kind + "/" + o.GetName()
}

// difference is the merge patch between two objects, with conditions and times in short.
func difference(from, to Object) string {
	a, _ := json.Marshal(from)
	b, _ := json.Marshal(to)
	patch, err := jsonpatch.CreateMergePatch(a, b)
	if err != nil {
		return err.Error()
	}
	patch = timestamp.ReplaceAllFunc(patch, func(t []byte) []byte {
		at, err := time.Parse(`"`+time.RFC3339+`"`, string(t))
		if err != nil {
			return t
		}
		return []byte(fmt.Sprintf(`"t+%s"`, at.Sub(epoch)))
	})
	var tree map[string]any
	if err := json.Unmarshal(patch, &tree); err != nil {
		return err.Error()
	}
	var parts []string
	flatten("", tree, &parts)
	sort.Strings(parts)
	return strings.Join(parts, " ")
}

func flatten(prefix string, tree map[string]any, parts *[]string) {
	for key, value := range tree {
		if key == "phaseTransitionTimestamps" {
			continue
		}
		path := strings.TrimPrefix(prefix+"."+key, ".")
		path = strings.TrimPrefix(strings.TrimPrefix(path, "status."), "metadata.")
		switch value := value.(type) {
		case map[string]any:
			flatten(prefix+"."+key, value, parts)
		case []any:
			*parts = append(*parts, path+"="+list(value))
		default:
			*parts = append(*parts, fmt.Sprintf("%s=%v", path, value))
		}
	}
}

func list(values []any) string {
	var parts []string
	for _, v := range values {
		m, ok := v.(map[string]any)
		if !ok || m["type"] == nil {
			text, _ := json.Marshal(v)
			parts = append(parts, strings.ReplaceAll(string(text), `"`, ""))
			continue
		}
		part := fmt.Sprintf("%v:%v", m["type"], m["status"])
		if r, _ := m["reason"].(string); r != "" {
			part += "(" + r + ")"
		}
		parts = append(parts, part)
	}
	return "[" + strings.Join(parts, " ") + "]"
}
