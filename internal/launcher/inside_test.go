package launcher

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExpandDoublesCommasInsideOptions(t *testing.T) {
	got := expand([]string{"-blockdev", "driver=file,filename={disk:a}", "-kernel", "{kernel}", "{unknown} {fd:1}:{fd:0}"},
		map[string]string{"{disk:a}": "/volumes/a/x,y", "{kernel}": "/k,1", "{fd:0}": "3", "{fd:1}": "4"})
	want := []string{"-blockdev", "driver=file,filename=/volumes/a/x,,y", "-kernel", "/k,1", "{unknown} 4:3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

// TestRingKeepsTheEnd writes pieces of many sizes and looks at the file after each.
func TestRingKeepsTheEnd(t *testing.T) {
	const limit = 1 << 10
	path := filepath.Join(t.TempDir(), "log")
	log, err := newRing(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	var all []byte
	for i := range 400 {
		piece := bytes.Repeat([]byte{byte('a' + i%26)}, 1+i%97)
		log.write(piece)
		all = append(all, piece...)
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > limit || len(got) < min(len(all), limit/2) || !bytes.HasSuffix(all, got) {
			t.Fatalf("after %d bytes the log holds %d bytes that are not the end of what was written, or are too many or few", len(all), len(got))
		}
	}
}

func TestRingSurvivesItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := newRing(filepath.Join(dir, "log"), 64)
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		log.write(make([]byte, 40))
	}
	if info, err := log.file.Stat(); err != nil || info.Size() > 64 {
		t.Errorf("the file grew to %d bytes, %v", info.Size(), err)
	}
}
