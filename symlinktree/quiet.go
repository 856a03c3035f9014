package symlinktree

import (
	"reflect"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// linkEvents are the events that links cause. IN_MODIFY is left out: logfiles lie in
// the same directories, and each append to one would wake the reader of the events.
const linkEvents = unix.IN_CREATE | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVED_TO |
	unix.IN_MOVED_FROM | unix.IN_MOVE_SELF | unix.IN_ATTRIB | unix.IN_ONLYDIR

// inotify is fsnotify with watches that do not tell of writes. fsnotify has no
// public way to say so, but the kernel lets a watch be set again with another mask.
type inotify struct {
	*fsnotify.Watcher
	fd int // -1: not found; then writes wake us, which costs time and nothing else
}

func newInotify() (inotify, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return inotify{}, err
	}
	return inotify{w, inotifyFd(w)}, nil
}

// inotifyFd digs the descriptor out of the watcher; -1 if another version of the
// library keeps it elsewhere (a test notices).
func inotifyFd(w *fsnotify.Watcher) int {
	v := reflect.ValueOf(w).Elem().FieldByName("b")
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return -1
	}
	fd := v.FieldByName("fd")
	if !fd.IsValid() || fd.Kind() != reflect.Int {
		return -1
	}
	return int(fd.Int())
}

func (n inotify) Events() <-chan fsnotify.Event { return n.Watcher.Events }
func (n inotify) Errors() <-chan error          { return n.Watcher.Errors }

// Add watches dir. The second call replaces the mask of the same watch.
func (n inotify) Add(dir string) error {
	if err := n.Watcher.Add(dir); err != nil {
		return err
	}
	if n.fd >= 0 {
		_, err := unix.InotifyAddWatch(n.fd, dir, linkEvents|unix.IN_DONT_FOLLOW)
		return err
	}
	return nil
}
