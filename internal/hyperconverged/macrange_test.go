package hyperconverged

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	hcov1beta1 "patchbay/api/hco/v1beta1"
)

func TestMACRange(t *testing.T) {
	const start, end, group = "02:00:00:00:00:00", "02:00:00:00:00:FF", "FD:FF:FF:FF:FF:FF"
	chosen := func(start, end string) *hcov1beta1.HyperConverged {
		h := &hcov1beta1.HyperConverged{}
		h.Spec.KubeMacPoolConfiguration = &hcov1beta1.KubeMacPoolConfiguration{RangeStart: &start, RangeEnd: &end}
		return h
	}
	off := &hcov1beta1.HyperConverged{}
	off.Annotations = map[string]string{NetworkPatchAnnotation: `[{"op":"replace","path":"/spec/kubeMacPool","value":null}]`}
	kept := map[string]string{"RANGE_START": "06:00:00:00:00:00", "RANGE_END": "06:00:00:FF:FF:FF", "REFUSE_DUPLICATES": "true"}
	for _, tc := range []struct {
		what    string
		h       *hcov1beta1.HyperConverged
		present map[string]string
		want    map[string]string
		problem bool
	}{
		{"nothing chosen", &hcov1beta1.HyperConverged{}, nil, map[string]string{"RANGE_START": "02:ab:cd:00:00:00", "RANGE_END": "02:ab:cd:ff:ff:ff"}, false},
		{"what a user wrote stays", &hcov1beta1.HyperConverged{}, kept, map[string]string{"RANGE_START": "06:00:00:00:00:00", "RANGE_END": "06:00:00:FF:FF:FF"}, false},
		{"chosen", chosen(start, end), kept, map[string]string{"RANGE_START": start, "RANGE_END": end}, false},
		{"taken away", off, map[string]string{"RANGE_START": start, "RANGE_END": end}, map[string]string{"RANGE_START": start, "RANGE_END": end, "OFF": "true"}, false},
		{"a bad choice changes nothing", chosen(start, group), map[string]string{"RANGE_START": start, "RANGE_END": end}, map[string]string{"RANGE_START": start, "RANGE_END": end}, true},
	} {
		got, err := macRange(tc.h, tc.present, func() uint16 { return 0xabcd })
		if diff := cmp.Diff(tc.want, got); diff != "" || (err != nil) != tc.problem {
			t.Errorf("%s: %v, -want +got:\n%s", tc.what, err, diff)
		}
	}
}
