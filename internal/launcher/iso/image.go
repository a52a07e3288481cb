package iso

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// form is one of the two trees of names in an image.
type form int

const (
	primary form = iota // short names, with the real ones in Rock Ridge fields
	joliet              // real names in UCS-2
)

// image is the layout: system area, descriptors, path tables, directories of both trees, files.
type image struct {
	label    string
	root     *node
	modified time.Time
	dirs     []*node
	tables   [2]struct{ little, big, size uint32 } // sectors and bytes of the path tables
	total    uint32                                // sectors
}

const firstDescriptor = 16

// newImage gives everything its sector.
func newImage(label string, root *node, modified time.Time) *image {
	m := &image{label: label, root: root, modified: modified, dirs: root.directories()}
	next := uint32(firstDescriptor + 3) // primary, Joliet, end
	for i, dir := range m.dirs {
		dir.number = uint16(i + 1)
	}
	for f := primary; f <= joliet; f++ {
		t := &m.tables[f]
		t.size = uint32(len(m.pathTable(f, binary.LittleEndian)))
		t.little, t.big = next, next+sectors(t.size)
		next = t.big + sectors(t.size)
	}
	for f := primary; f <= joliet; f++ {
		for _, dir := range m.dirs {
			size := uint32(len(m.directory(dir, f)))
			dir.place[f] = place{next, size}
			next += sectors(size)
		}
	}
	for _, dir := range m.dirs {
		for _, file := range dir.children {
			if !file.dir {
				file.extent = next
				next += max(sectors(uint32(len(file.content))), 1)
			}
		}
	}
	m.total = next
	return m
}

func sectors(size uint32) uint32 { return (size + sector - 1) / sector }

func (m *image) bytes() []byte {
	out := make([]byte, m.total*sector)
	put := func(at uint32, data []byte) { copy(out[at*sector:], data) }
	put(firstDescriptor, m.descriptor(primary))
	put(firstDescriptor+1, m.descriptor(joliet))
	put(firstDescriptor+2, []byte("\xffCD001\x01"))
	for f := primary; f <= joliet; f++ {
		put(m.tables[f].little, m.pathTable(f, binary.LittleEndian))
		put(m.tables[f].big, m.pathTable(f, binary.BigEndian))
		for _, dir := range m.dirs {
			put(dir.place[f].extent, m.directory(dir, f))
		}
	}
	for _, dir := range m.dirs {
		for _, file := range dir.children {
			if !file.dir {
				put(file.extent, file.content)
			}
		}
	}
	return out
}

// descriptor is a primary or supplementary volume descriptor (ECMA-119 8.4, 8.5).
func (m *image) descriptor(f form) []byte {
	d := make([]byte, sector)
	copy(d, "\x01CD001\x01")
	text := func(at, length int, s string) { copy(d[at:at+length], padded(s, length, f)) }
	text(8, 32, "LINUX")
	text(40, 32, m.label)
	put32(d[80:], m.total)
	if f == joliet {
		d[0] = 2
		copy(d[88:], "%/E") // UCS-2 level 3
	}
	put16(d[120:], 1) // volumes in the set
	put16(d[124:], 1) // number of this one
	put16(d[128:], sector)
	put32(d[132:], m.tables[f].size)
	binary.LittleEndian.PutUint32(d[140:], m.tables[f].little)
	binary.BigEndian.PutUint32(d[148:], m.tables[f].big)
	copy(d[156:190], m.record(m.root, "\x00", f, nil))
	for _, at := range []int{190, 318, 446, 574} { // set, publisher, preparer, application
		text(at, 128, "")
	}
	for _, at := range []int{702, 739, 776} { // copyright, abstract, bibliography
		text(at, 37, "")
	}
	stamp := m.modified.Format("20060102150405") + "00\x00"
	copy(d[813:], stamp)
	copy(d[830:], stamp)
	copy(d[847:], "0000000000000000\x00") // never expires
	copy(d[864:], "0000000000000000\x00") // effective at once
	d[881] = 1
	return d
}

// padded is text filled with spaces.
func padded(s string, length int, f form) []byte {
	if f == primary {
		return []byte(s + strings.Repeat(" ", length-len(s)))
	}
	// The odd byte at the end of a field of odd length stays zero.
	return []byte(ucs2(s + strings.Repeat(" ", length/2-len(s))))
}

func ucs2(s string) string {
	var b bytes.Buffer
	for _, unit := range utf16.Encode([]rune(s)) {
		b.WriteByte(byte(unit >> 8))
		b.WriteByte(byte(unit))
	}
	return b.String()
}

// identifier is a node's name in a tree.
func (n *node) identifier(f form) string {
	switch {
	case n.name == "":
		return "\x00"
	case f == joliet:
		return ucs2(n.name)
	}
	return n.short
}

// pathTable lists the directories with their parents (ECMA-119 9.4).
func (m *image) pathTable(f form, order binary.ByteOrder) []byte {
	var b bytes.Buffer
	for _, dir := range m.dirs {
		name := dir.identifier(f)
		head := make([]byte, 8)
		head[0] = byte(len(name))
		order.PutUint32(head[2:], dir.place[f].extent)
		order.PutUint16(head[6:], dir.parent.number)
		b.Write(head)
		b.WriteString(name)
		if len(name)%2 == 1 {
			b.WriteByte(0)
		}
	}
	return b.Bytes()
}

// directory is the content of a directory: records sorted by name, none across a sector's end, filled to whole sectors.
func (m *image) directory(dir *node, f form) []byte {
	var first []byte
	if f == primary {
		first = rockRidgeRoot(dir)
	}
	records := [][]byte{m.record(dir, "\x00", f, first), m.record(dir.parent, "\x01", f, nil)}
	children := slices.Clone(dir.children)
	slices.SortFunc(children, func(a, b *node) int { return strings.Compare(a.identifier(f), b.identifier(f)) })
	for _, child := range children {
		records = append(records, m.record(child, child.identifier(f), f, nil))
	}
	var out []byte
	for _, record := range records {
		if room := sector - len(out)%sector; room < len(record) {
			out = append(out, make([]byte, room)...)
		}
		out = append(out, record...)
	}
	return append(out, make([]byte, (sector-len(out)%sector)%sector)...)
}

// record is a directory record (ECMA-119 9.1) with Rock Ridge fields in the primary tree. first goes before those.
func (m *image) record(n *node, name string, f form, first []byte) []byte {
	at, size, flags := n.extent, uint32(len(n.content)), byte(0)
	if n.dir {
		at, size, flags = n.place[f].extent, n.place[f].size, 2
	}
	r := make([]byte, 33, 255)
	put32(r[2:], at)
	put32(r[10:], size)
	t := m.modified
	copy(r[18:], []byte{byte(t.Year() - 1900), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0})
	r[25] = flags
	put16(r[28:], 1)
	r[32] = byte(len(name))
	r = append(r, name...)
	if len(name)%2 == 0 {
		r = append(r, 0)
	}
	// The root's record inside the descriptor has room for nothing else.
	if f == primary && !(n.name == "" && name == "\x00" && first == nil) {
		r = append(append(r, first...), rockRidge(n, name)...)
	}
	if len(r)%2 == 1 {
		r = append(r, 0)
	}
	r[0] = byte(len(r))
	return r
}

// rockRidgeRoot are the fields that announce Rock Ridge in the root's own record.
func rockRidgeRoot(dir *node) []byte {
	if dir.name != "" {
		return []byte{}
	}
	const id = "RRIP_1991A"
	sharing := []byte{'S', 'P', 7, 1, 0xbe, 0xef, 0}
	extension := append([]byte{'E', 'R', byte(8 + len(id)), 1, byte(len(id)), 0, 0, 1}, id...)
	return append(sharing, extension...)
}

// rockRidge are the fields of a file's mode and real name.
func rockRidge(n *node, name string) []byte {
	mode, links := uint32(0o100444), uint32(1)
	if n.dir {
		mode, links = 0o040555, 2
	}
	px := make([]byte, 36)
	copy(px, []byte{'P', 'X', 36, 1})
	put32(px[4:], mode)
	put32(px[12:], links)
	if len(name) == 1 && name[0] <= 1 { // the record of the directory itself or of its parent
		return px
	}
	nm := append([]byte{'N', 'M', byte(5 + len(n.name)), 1, 0}, n.name...)
	return append(px, nm...)
}

// put32 and put16 write a number in both byte orders, as the format has most of its numbers.
func put32(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

func put16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}
