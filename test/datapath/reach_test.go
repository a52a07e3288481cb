package datapath

import (
	"testing"
)

func TestStart(t *testing.T) {
	t.Log(len(lab.pods))
}
