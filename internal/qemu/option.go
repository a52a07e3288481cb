package qemu

import (
	"fmt"
	"strings"
)

// properties are a device's settings in order. Values are string, bool or int, so that they serve a command line and QMP alike.
type properties []property

type property struct {
	key   string
	value any
}

func (p *properties) set(key string, value any) { *p = append(*p, property{key, value}) }

// option is the value of one of QEMU's options: a first word and key=value pairs, separated by commas.
func (p properties) option(first string) string {
	var b strings.Builder
	b.WriteString(escape(first))
	for i, item := range p {
		if i > 0 || first != "" {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%s", item.key, escape(word(item.value)))
	}
	return b.String()
}

// arguments are the properties as a QMP command takes them.
func (p properties) arguments() map[string]any {
	args := map[string]any{}
	for _, item := range p {
		args[item.key] = item.value
	}
	return args
}

func word(value any) string {
	switch v := value.(type) {
	case bool:
		return onOff(v)
	default:
		return fmt.Sprint(v)
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// escape doubles commas, which separate the parts of an option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
