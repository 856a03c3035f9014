package register

import (
	"math"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name    string
		history []Access
		legal   bool
	}{
		{"empty", nil, true},
		{"read of the start", []Access{{false, 0, 1, 2}}, true},
		{"plain", []Access{{true, 1, 1, 2}, {false, 1, 3, 4}, {true, 2, 5, 6}, {false, 2, 7, 8}}, true},
		{"concurrent read sees old", []Access{{true, 1, 1, 4}, {false, 0, 2, 3}}, true},
		{"concurrent read sees new", []Access{{true, 1, 1, 4}, {false, 1, 2, 3}}, true},
		{"stale read", []Access{{true, 1, 1, 2}, {false, 0, 3, 4}}, false},
		{"new, then old again", []Access{{true, 1, 1, 8}, {false, 1, 2, 3}, {false, 0, 4, 5}}, false},
		{"flip-flop of concurrent writes", []Access{{true, 1, 1, 10}, {true, 2, 1, 10}, {false, 1, 2, 3}, {false, 2, 4, 5}, {false, 1, 6, 7}}, false},
		{"concurrent writes in any order", []Access{{true, 1, 1, 10}, {true, 2, 1, 10}, {false, 2, 11, 12}, {false, 2, 13, 14}}, true},
		{"lost update", []Access{{true, 1, 1, 2}, {true, 2, 3, 4}, {false, 1, 5, 6}}, false},
		{"read from the future", []Access{{false, 1, 1, 2}, {true, 1, 3, 4}}, false},
		{"a write that never returned, seen", []Access{{true, 1, 1, math.MaxInt64}, {false, 0, 2, 3}, {false, 1, 4, 5}, {false, 1, 6, 7}}, true},
		{"a write that never returned, not seen", []Access{{true, 1, 1, math.MaxInt64}, {true, 2, 2, 3}, {false, 2, 4, 5}}, true},
		{"a write that never returned, seen and gone", []Access{{true, 1, 1, math.MaxInt64}, {false, 1, 2, 3}, {false, 0, 4, 5}}, false},
		{"out of thin air", []Access{{false, 9, 1, 2}}, false},
	} {
		if err := Check(tc.history); (err == nil) != tc.legal {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
