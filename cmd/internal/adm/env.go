package adm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mars/cmd/internal/macro"
	"mars/device"
	"mars/internal/vfs"
)

// Defaults of the global options.
const (
	defaultRoot   = "/mars"
	defaultSecret = "/etc/mars/secret"
)

// Env is what marsadm takes from its surroundings. The zero value is the real
// world; tests and the demo replace parts of it.
type Env struct {
	Getenv   func(string) string
	Hostname func() (string, error)
	Now      func() time.Time
	FS       vfs.FS
	// IsMountPoint reports whether a filesystem of its own is mounted at path.
	IsMountPoint func(path string) (bool, error)
	// Addresses lists the addresses of this machine, best first.
	Addresses func() ([]string, error)
	// Lookup resolves a host name.
	Lookup func(ctx context.Context, host string) ([]string, error)
	// DiskSize opens a backing disk, exclusively if told so, reports its size and
	// closes it.
	DiskSize func(path string, exclusive bool) (int64, error)
	// DiskPresent reports whether a path is a usable backing disk.
	DiskPresent func(path string) bool
	Mounts      func() []macro.Mount
	// SyncAll flushes all filesystems (after detach).
	SyncAll func()
	// Stdin is asked with --singlestep.
	Stdin io.Reader
	// Terminal: the error output is one, so that progress may be shown on it.
	Terminal bool
	// OutTerminal: the standard output is one, so that views may be coloured.
	OutTerminal bool
	// Poll is the pause between two looks at the tree while waiting.
	Poll time.Duration
}

func (e Env) withDefaults() Env {
	if e.Getenv == nil {
		e.Getenv = os.Getenv
	}
	if e.Hostname == nil {
		e.Hostname = os.Hostname
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.FS == nil {
		e.FS = vfs.OS
	}
	if e.IsMountPoint == nil {
		e.IsMountPoint = isMountPoint
	}
	if e.Addresses == nil {
		e.Addresses = interfaceAddresses
	}
	if e.Lookup == nil {
		e.Lookup = net.DefaultResolver.LookupHost
	}
	if e.DiskSize == nil {
		e.DiskSize = diskSize
	}
	if e.DiskPresent == nil {
		e.DiskPresent = diskPresent
	}
	if e.Mounts == nil {
		e.Mounts = kernelMounts
	}
	if e.SyncAll == nil {
		e.SyncAll = unix.Sync
	}
	if e.Stdin == nil {
		e.Stdin = os.Stdin
	}
	if e.Poll <= 0 {
		e.Poll = 20 * time.Millisecond
	}
	return e
}

// isMountPoint: a directory is one if it is on another device than its parent, or
// is its own parent; bind mounts of the same device are found in the mount table.
func isMountPoint(path string) (bool, error) {
	var here, parent unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Stat(filepath.Join(path, ".."), &parent); err != nil {
		return false, &fs.PathError{Op: "stat", Path: path + "/..", Err: err}
	}
	if here.Dev != parent.Dev || here.Ino == parent.Ino {
		return true, nil
	}
	for _, m := range kernelMounts() {
		if m.Point == filepath.Clean(path) {
			return true, nil
		}
	}
	return false, nil
}

// kernelMounts reads the mount table of this process.
func kernelMounts() []macro.Mount {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []macro.Mount
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if w := strings.Fields(lines.Text()); len(w) >= 4 {
			out = append(out, macro.Mount{Device: unescape.Replace(w[0]), Point: unescape.Replace(w[1]), FSType: w[2], Flags: w[3]})
		}
	}
	return out
}

func interfaceAddresses() ([]string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var v4, v6 []string
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() {
			continue
		}
		if n.IP.To4() != nil {
			v4 = append(v4, n.IP.String())
		} else {
			v6 = append(v6, n.IP.String())
		}
	}
	return append(v4, v6...), nil
}

// diskSize uses the same opening rules as marsd. Without exclusive a disk that is
// in use is measured all the same.
func diskSize(path string, exclusive bool) (int64, error) {
	d, err := device.OpenDisk(vfs.OS, path)
	if err == nil {
		size := d.Size()
		return size, d.Close()
	}
	if exclusive {
		return 0, err
	}
	f, ferr := vfs.OS.OpenFile(path, os.O_RDONLY, 0)
	if ferr != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// diskPresent reports whether path is a block device or a regular file.
func diskPresent(path string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	m := st.Mode()
	return m.IsRegular() || m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
}

// checkRoot makes sure that the root can hold a tree: it exists, and the default
// one is a filesystem of its own, so that logs never fill another one.
func checkRoot(env Env, root string, isDefault, mustBeMounted bool) error {
	stat := os.Stat
	if env.FS != vfs.OS {
		stat = env.FS.Lstat
	}
	st, err := stat(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("make it and mount its filesystem, or name another root with --root or MARS_ROOT", "the root %s does not exist", root)
	case err != nil:
		return err
	case !st.IsDir():
		return refuse("", "the root %s is not a directory", root)
	}
	if !isDefault || !mustBeMounted {
		return nil
	}
	mounted, err := env.IsMountPoint(root)
	if err != nil {
		return err
	}
	if !mounted {
		return refuse("mount a filesystem of its own there; transaction logs must not fill another one",
			"%s is not a mount point", root)
	}
	return nil
}

// nodeName is the name of this node: the option, the environment, or the host name
// without its domain.
func nodeName(env Env, opt string) (string, error) {
	if opt == "" {
		opt = env.Getenv("MARS_NODE")
	}
	if opt != "" {
		return opt, nil
	}
	name, err := env.Hostname()
	if err != nil {
		return "", fmt.Errorf("find out the name of this node: %w; name it with --node", err)
	}
	name, _, _ = strings.Cut(name, ".")
	return name, nil
}

// isRoot reports whether the process may change a root-owned tree.
func isRoot() bool { return syscall.Geteuid() == 0 }
