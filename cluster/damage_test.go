package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mars/internal/logdamage"
	"mars/internal/nbdclient"
	"mars/logfile"
	"mars/symlinktree"
)

// flip damages one byte of a logfile.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x20
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// noSplit demands that nobody has seen a split brain.
func noSplit(t *testing.T, nodes ...*testNode) {
	t.Helper()
	for _, n := range nodes {
		if v := n.get("resource-r0/actual-" + n.name + "/msg-" + msgSplitBrain); v != "" && v != "OK" {
			t.Errorf("%s says: %s", n.name, v)
		}
	}
}

func flush(t *testing.T, c *nbdclient.Client) {
	t.Helper()
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// rotateLog asks for log number seq, as marsadm log-rotate does.
func (n *testNode) rotateLog(seq int) {
	n.t.Helper()
	f, err := os.OpenFile(filepath.Join(n.cfg.Root, "resource-r0", log(seq, n.name).String()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	f.Close()
	n.await("has rotated", func() bool { return n.node.worker("r0").engine().Status().Current.Seq == seq })
}

// A primary with damage in its own log stays away, says where and what to do, and
// goes on in a new log when a person gives the rest up; only then, and only for that
// place. Who was not beyond the damage follows it without a split brain.
func TestDamagedOwnLog(t *testing.T) {
	for _, later := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d later logs", later), func(t *testing.T) {
			t.Parallel()
			a, b, bad, c := brokenPair(t)
			write(t, c, 0, bytes.Repeat([]byte("1"), 4096))
			flush(t, c)
			kept := contentSum(t, c)
			b.await("is settled", func() bool { return settled(a, b, "r0") && b.diskSum() == kept })
			at := a.node.worker("r0").engine().Status().IngestEnd
			b.put("resource-r0/todo-b/connect", "0") // b does not get what comes
			b.awaitLink("resource-r0/actual-b/is-copying", "0")
			bad.disk.Store(true) // nothing more is written back: the log is needed after the restart
			write(t, c, 8192, bytes.Repeat([]byte("2"), 4096))
			write(t, c, 16384, bytes.Repeat([]byte("3"), 4096))
			flush(t, c)
			for i := range later {
				a.rotateLog(at.Log.Seq + 1 + i)
				write(t, c, 32768, bytes.Repeat([]byte("4"), 4096))
				flush(t, c)
			}
			c.Close()
			a.stop()
			bad.disk.Store(false)
			flip(t, filepath.Join(a.cfg.Root, "resource-r0", at.Log.String()), at.Offset+200)

			a.start()
			a.await("names the damage", func() bool {
				return strings.HasPrefix(a.get("resource-r0/actual-a/log-damage"), at.String()+",")
			})
			a.awaitLink("resource-r0/actual-a/replay-code", "-74,10101")
			a.await("says what to do", func() bool {
				m := a.get("resource-r0/actual-a/msg-" + msgReplayStop)
				return strings.Contains(m, at.String()) && strings.Contains(m, "checksum") && strings.Contains(m, "marsadm primary --force r0")
			})
			// Neither the switch of old nor consent to another loss counts.
			a.put("resource-r0/todo-a/connect", "0", "resource-r0/todo-a/give-up", log(9, "a").String()+",5")
			tries := strings.Count(a.logs.String(), "action=recover")
			a.await("has tried again", func() bool { return strings.Count(a.logs.String(), "action=recover") > tries+2 })
			if a.get("resource-r0/actual-a/if-on") == "1" || a.get("resource-r0/actual-a/is-primary") == "1" || a.get("resource-r0/actual-a/log-recovered") != "0" {
				t.Fatal("the device appeared over damage")
			}
			a.put("resource-r0/todo-a/connect", "1", "resource-r0/todo-a/give-up", at.String())
			c = a.device("r0")
			defer c.Close()
			if contentSum(t, c) != kept {
				t.Error("the device is not what was in front of the damage")
			}
			a.awaitLink("resource-r0/actual-a/log-damage", "0")
			a.awaitLink("resource-r0/actual-a/log-recovered", "1")
			if seq := a.node.worker("r0").engine().Status().Current.Seq; seq != at.Log.Seq+1+later {
				t.Errorf("goes on in log %d", seq)
			}
			b.put("resource-r0/todo-b/connect", "1")
			write(t, c, 65536, bytes.Repeat([]byte("5"), 4096))
			flush(t, c)
			want := contentSum(t, c)
			b.await("follows", func() bool { return settled(a, b, "r0") && b.diskSum() == want })
			noSplit(t, a, b)
			c.Close()

			// And after one more restart.
			a.stop()
			a.start()
			c = a.device("r0")
			defer c.Close()
			if contentSum(t, c) != want {
				t.Error("content differs after another restart")
			}
		})
	}
}

// healthyLog is a log of n writes of a node that is gone.
func healthyLog(t *testing.T, n int) []byte {
	t.Helper()
	dir := t.TempDir()
	w, err := logfile.Create(dir, log(1, "a"), logfile.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		data := bytes.Repeat([]byte{byte(i + 1)}, 4096+512*i)
		if _, err := w.Append([]logfile.Entry{{Pos: int64(i) << 14, Code: logfile.CodeWrite, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, log(1, "a").String()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// primary --force on a secondary whose copy is damaged takes what is in front of the
// damage and goes on in a new log, which it makes itself (a part of the matrix that device
// runs whole).
func TestForceOverDamagedCopy(t *testing.T) {
	good := healthyLog(t, 6)
	borders := logdamage.Borders(good)
	ran := 0
	for _, c := range logdamage.Cases(1, [][]byte{good}, healthyLog(t, 3), size) {
		chosen := false
		for _, name := range []string{"payload bit flip, first", "end tag full of 0x5a, middle", "end tag zero, last", "cut inside the payload, middle",
			"sequence jump forward, last", "zeros from here on, middle", "random bytes behind", "empty file", "missing file"} {
			chosen = chosen || strings.HasPrefix(c.Name, name)
		}
		if !chosen {
			continue
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			n := newTestNodes(t, "b")["b"]
			n.makeDisk('B')
			v1 := version(1, "a", int64(len(good)), "")
			n.put("ips/ip-a", "127.0.0.99:1", "resource-r0/size", fmt.Sprint(size), "resource-r0/data-a", "/a", "resource-r0/data-b", n.disk,
				"resource-r0/device-b", "r0", "resource-r0/primary", "b", "resource-r0/syncstatus-b", fmt.Sprint(size),
				"resource-r0/todo-b/attach", "1", "resource-r0/todo-b/connect", "0", "resource-r0/todo-b/allow-replay", "1",
				"resource-r0/replay-b", log(1, "a").String()+",0,0", "resource-r0/version-000000001-a", v1, "resource-r0/version-000000001-b", v1)
			if l := c.Logs[0]; !l.Absent {
				if err := os.WriteFile(filepath.Join(n.cfg.Root, "resource-r0", log(1, "a").String()), l.Data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n.start()
			dev := n.device("r0")
			defer dev.Close()
			want := bytes.Repeat([]byte("B"), size)
			for i, at := range borders[:len(borders)-1] {
				if at < c.Offset {
					copy(want[i<<14:], bytes.Repeat([]byte{byte(i + 1)}, 4096+512*i))
				}
			}
			got := make([]byte, size)
			if err := dev.Read(context.Background(), got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the device is not the log up to the damage")
			}
			if cur := n.node.worker("r0").engine().Status().Current; cur != log(2, "b") {
				t.Errorf("goes on in %v", cur)
			}
			v, err := symlinktree.ParseVersion(n.get("resource-r0/version-000000002-b"))
			if prev, ok := v.Predecessor(); err != nil || !ok || prev.Pos != min(c.Offset, int64(len(good))) {
				t.Errorf("the new log says it follows %v at %d, want %d (%v)", prev.Log(), prev.Pos, c.Offset, err)
			}
			write(t, dev, 0, make([]byte, 512))
			flush(t, dev)
		})
	}
	if ran != 9 {
		t.Errorf("%d cases", ran)
	}
}
