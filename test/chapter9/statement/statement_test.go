package statement

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheDocumentHasAllStatements(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 369 {
		t.Errorf("have %d statements, want 369", len(all))
	}
	if diff := cmp.Diff(Statement{"9.1-C1", "9.1", all[0].Text}, all[0]); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefusesWhatItCannotRead(t *testing.T) {
	for name, text := range map[string]string{
		"twice":      "== 9 a\nC1 x\nC1 y",
		"no section": "C1 x",
		"no number":  "== 9 a\nhello",
	} {
		if _, err := parse(text); err == nil {
			t.Errorf("%s: no error for %q", name, text)
		}
	}
}

func TestRead(t *testing.T) {
	stream := `{"Action":"pass","Test":"TestMasquerade/9.2.1-C1_dhcp"}
{"Action":"pass","Test":"TestMasquerade/9.2.1-C4"}
{"Action":"fail","Test":"TestMasquerade/v6/9.2.1-C4_again"}
{"Action":"skip","Test":"TestMasquerade/9.2.1-C5"}
{"Action":"pass","Test":"TestMasquerade/SSH.4-K1_bare_name/ping"}
{"Action":"fail","Test":"TestMasquerade/9.2.1-C44x"}
{"Action":"output","Output":"hello\n"}
not json`
	var output strings.Builder
	got, err := Read(strings.NewReader(stream), func(s string) { output.WriteString(s) })
	if err != nil {
		t.Fatal(err)
	}
	want := Results{"9.2.1-C1": Pass, "9.2.1-C4": Fail, "9.2.1-C5": Skipped, "SSH.4-K1": Pass}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if output.String() != "hello\nnot json\n" {
		t.Errorf("output %q", output.String())
	}
	if _, err := Read(strings.NewReader("x.go:1: syntax error\n"), func(string) {}); err == nil {
		t.Error("a stream without tests is no success")
	}
}
