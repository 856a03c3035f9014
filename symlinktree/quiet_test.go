package symlinktree

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestAppendWakesNobody: links in a watched directory are told, appends to a file are not.
func TestAppendWakesNobody(t *testing.T) {
	dir := t.TempDir()
	n, err := newInotify()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.fd < 0 {
		t.Fatal("the inotify descriptor is not where this version of fsnotify is expected to keep it")
	}
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 { // the second Add must not bring the writes back
		if err := n.Add(dir); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, err := f.WriteString("record"); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("value", link); err != nil {
		t.Fatal(err)
	}
	// Events come in order: the first one is the link's.
	select {
	case ev := <-n.Events():
		if ev.Name != link || ev.Op != fsnotify.Create {
			t.Errorf("first event is %v, want the creation of %s", ev, link)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no event for a new link")
	}
}
