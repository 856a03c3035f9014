package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/testutil"
)

func TestImageIsExt4(t *testing.T) {
	img, err := image()
	if err != nil {
		t.Fatal(err)
	}
	super := img[1024:]
	if magic := binary.LittleEndian.Uint16(super[0x38:]); magic != 0xef53 {
		t.Errorf("superblock magic %#x, want 0xef53", magic)
	}
	if blocks := binary.LittleEndian.Uint32(super[4:]); blocks*blockSize != imageSize {
		t.Errorf("the filesystem has %d blocks of %d bytes, the image %d bytes", blocks, blockSize, imageSize)
	}
	if label := string(bytes.TrimRight(super[0x78:0x88], "\x00")); label != "marsdemo" {
		t.Errorf("label %q", label)
	}
	if len(imageGz) > 100<<10 {
		t.Errorf("the embedded image takes %d bytes", len(imageGz))
	}
}

// TestFailure: a demo that cannot work says so, shows the log, and leaves nothing.
func TestFailure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	var out bytes.Buffer
	err := Run(t.Context(), Options{Dir: dir, Size: 2 * imageSize, Exe: "/bin/false"}, &out)
	if err == nil || !strings.Contains(err.Error(), "has ended while waiting") {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{"FAILED", "create-cluster"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "PASSED") {
		t.Errorf("PASSED although nothing works:\n%s", out.String())
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left behind: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "d")
	var out bytes.Buffer
	if err := Run(ctx, Options{Dir: dir, Size: 2 * imageSize, Exe: "/bin/false"}, &out); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory left behind: %v", err)
	}
}

func TestBadOptions(t *testing.T) {
	exists := t.TempDir()
	for name, o := range map[string]Options{
		"too small":  {Size: imageSize},
		"unaligned":  {Size: 2*imageSize + 1},
		"too large":  {Size: 1 << 40},
		"negative":   {Size: -1 << 20},
		"dir exists": {Dir: exists},
		"dir long":   {Dir: filepath.Join(exists, strings.Repeat("x", maxSocketPath))},
	} {
		var out bytes.Buffer
		if err := Run(t.Context(), o, &out); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := os.Stat(exists); err != nil {
		t.Errorf("a directory that is not the demo's has been removed: %v", err)
	}
}

func TestProgressPlain(t *testing.T) {
	var out bytes.Buffer
	u := newUI(&out, false, false)
	for done := int64(0); done <= 100; done++ {
		u.progress([]bar{{"a", done, 100, ""}, {"bb", 0, 0, "nothing to do"}})
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 6 { // a: 0 25 50 75 100; bb: done at once
		t.Errorf("%d lines:\n%s", len(lines), out.String())
	}
	if strings.ContainsAny(out.String(), "\x1b\r") {
		t.Errorf("terminal controls in a pipe: %q", out.String())
	}
}

func TestProgressTerminal(t *testing.T) {
	var out bytes.Buffer
	u := newUI(&out, true, true)
	u.progress([]bar{{"a", 1, 2, ""}, {"b", 1, 2, ""}})
	out.Reset()
	u.progress([]bar{{"a", 2, 2, ""}, {"b", 2, 2, ""}})
	if !strings.HasPrefix(out.String(), "\x1b[2A\r\x1b[K") {
		t.Errorf("bars are not redrawn in place: %q", out.String())
	}
	u.progressDone()
	out.Reset()
	u.progress([]bar{{"a", 2, 2, ""}})
	if strings.Contains(out.String(), "\x1b[2A") {
		t.Errorf("finished bars are overwritten: %q", out.String())
	}
	plain := newUI(&out, true, false)
	if s := plain.paint(red, "x"); s != "x" {
		t.Errorf("colour although switched off: %q", s)
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"r0": "r0", "/a/b-c_d": "/a/b-c_d", "a b": "'a b'", "it's": `'it'\''s'`, "": "''", "$x": "'$x'"} {
		if got := shellWord(in); got != want {
			t.Errorf("shellWord(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAddressesAvoidTakenPorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.12:7777")
	if err != nil {
		t.Logf("the standard port is in use already: %v", err)
	} else {
		defer l.Close()
	}
	list, err := addresses(3)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		_, port, err := net.SplitHostPort(a)
		if err != nil || port == "7777" {
			t.Errorf("address %q: %v; port 7777 is taken", a, err)
		}
	}
}

// TestCompareSees is the negative control of the verdict.
func TestCompareSees(t *testing.T) {
	var out bytes.Buffer
	s := &scenario{ui: newUI(&out, false, false), app: &application{image: make([]byte, 8*blockSize)}}
	got := make([]byte, 8*blockSize)
	if err := s.compare([]content{{"disk", got}}); err != nil {
		t.Errorf("equal contents: %v", err)
	}
	got[3*blockSize+17] = 1
	err := s.compare([]content{{"other", make([]byte, len(got))}, {"disk", got}})
	if err == nil || !strings.Contains(err.Error(), "disk differs") || !strings.Contains(err.Error(), "12288") {
		t.Errorf("one changed byte: %v", err)
	}
}

// TestStopStubborn: a daemon that ignores SIGTERM is killed.
func TestStopStubborn(t *testing.T) {
	dir := t.TempDir()
	exe := filepath.Join(dir, "stubborn")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\ntrap '' TERM\n: >\"$MARS_SECRET.ready\"\nexec sleep 300\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := &node{name: "alpha", addr: "127.0.0.1", dir: dir, exe: exe}
	if err := n.start(false); err != nil {
		t.Fatal(err)
	}
	testutil.WaitFor(t, 20*time.Second, "the script ignores SIGTERM", func() bool {
		_, err := os.Stat(n.secret() + ".ready")
		return err == nil
	})
	begin := time.Now()
	n.stop(50 * time.Millisecond)
	if n.running() {
		t.Error("still running")
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("stop took %v", took)
	}
	n.stop(time.Second) // again: nothing to do
}
