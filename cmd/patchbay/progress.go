package main

import (
	"fmt"
	"os"
	"strings"
)

// progressBar shows how far long work has come, on a terminal only: a log wants results, not their making.
type progressBar struct {
	file     *os.File
	terminal bool
	drawn    string
}

func newProgressBar(file *os.File) *progressBar {
	info, err := file.Stat()
	return &progressBar{file: file, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0}
}

const barWidth = 30

// show draws the bar for done of total.
func (p *progressBar) show(label string, done, total int64) {
	if !p.terminal {
		return
	}
	part := 0.0
	if total > 0 {
		part = min(1, float64(done)/float64(total))
	}
	full := int(part * barWidth)
	line := fmt.Sprintf("[%s%s] %3.0f%%  %s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), part*100, label)
	if line != p.drawn {
		p.drawn = line
		fmt.Fprint(p.file, "\r\033[K"+line)
	}
}

// end removes the bar.
func (p *progressBar) end() {
	if p.drawn != "" {
		fmt.Fprint(p.file, "\r\033[K")
		p.drawn = ""
	}
}

// megabytes is a size for people.
func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
