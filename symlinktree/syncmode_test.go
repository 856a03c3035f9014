package symlinktree

import (
	"errors"
	"testing"
	"time"
)

func TestParseSyncMode(t *testing.T) {
	for text, want := range map[string]SyncMode{
		"async": {}, "sync,1": {Members: 1}, "near,2,50": {Members: 2, Patience: 50 * time.Millisecond}, "near,64,3600000": {Members: 64, Patience: time.Hour},
	} {
		got, err := ParseSyncMode(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: %+v (%s) %v", text, got, got, err)
		}
	}
	for _, text := range []string{"", "Async", "async,1", "sync", "sync,0", "sync,65", "sync,1,1", "near", "near,1", "near,1,0", "near,1,3600001", "near,x,1", "near,1,1,1"} {
		if m, err := ParseSyncMode(text); !errors.Is(err, ErrValue) {
			t.Errorf("%q: %+v %v", text, m, err)
		}
	}
}
