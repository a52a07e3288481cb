package vmctl

import (
	"fmt"
	"testing"
)

func TestParseCopy(t *testing.T) {
	for words, want := range map[[2]string]string{
		{"a", "alice@web:b"}:              " a alice@shop/web b",
		{"vm/web/other:/etc/passwd", "."}: "@other/web /etc/passwd  .",
		{"./a:b", "web:"}:                 " ./a:b @shop/web ",
		{"/a:b", "web:c"}:                 " /a:b @shop/web c",
		{"a", "b"}:                        `neither "a" nor "b" is a file of a virtual machine; write [USER@]MACHINE:FILE`,
		{"web:a", "web:b"}:                "both files are of virtual machines; copy from one to this host first",
		{":a", "b"}:                       `"" names no virtual machine; write NAME, vm/NAME or vm/NAME/NAMESPACE`,
	} {
		from, to, err := ParseCopy(words[0], words[1], "shop")
		got := describeFile(from) + " " + describeFile(to)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", words, got, want)
		}
	}
}

func describeFile(f File) string {
	if !f.Remote() {
		return " " + f.Path
	}
	return fmt.Sprintf("%s@%s/%s %s", f.User, f.Machine.Namespace, f.Machine.Name, f.Path)
}
