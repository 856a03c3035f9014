package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"mars/internal/oracle"
	"mars/internal/testutil"
)

// TestV01LifeCycle: a resource is made of a disk with content, written alone, gets
// a second member with a larger disk full of junk, is deleted, and lives again from
// the disk of the second one.
func TestV01LifeCycle(t *testing.T) {
	c := NewCluster(t, 2, WithArgs(fastArgs...))
	a, b := c.Nodes[0], c.Nodes[1]
	const size = 16 * mib
	seed := testutil.Seed(t)
	w := &world{t: t, c: c, size: size, disks: map[*Node]string{}, gate: &pacer{rate: 4e6}}
	w.base = make([]byte, size)
	junk := make([]byte, size+8*mib)
	var key [32]byte
	copy(key[:], "junk")
	if _, err := rand.NewChaCha8(key).Read(junk); err != nil {
		t.Fatal(err)
	}
	copy(w.base, junk[8*mib:]) // known content that is not on the other disk at this place
	for n, content := range map[*Node][]byte{a: w.base, b: junk} {
		w.disks[n] = n.Path("disk")
		if err := os.WriteFile(w.disks[n], content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.journal, err = oracle.NewJournal(oracle.JournalConfig{Run: seed, Branch: 1, Size: size, Base: bytes.NewReader(w.base)})
	if err != nil {
		t.Fatal(err)
	}
	w.load = oracle.NewLoad(w.journal, scenarioLoad, seed)

	a.CreateResource(w.disks[a])
	if v := w.readBack("export before the first write", a); v.Stamped != 0 {
		t.Errorf("the new export shows writes: %s", v.Summary())
	}
	w.start(a)
	w.more(a, 300)
	b.JoinResource(w.disks[b])
	w.more(a, 300)
	w.finish()
	if rs, ds := b.View("resource-size", "r0"), b.View("disk-size", "r0"); rs != "16777216" || ds != "25165824" {
		t.Errorf("%s: resource-size %s, disk-size %s", b.Name, rs, ds)
	}
	w.equal(a) // leaves the resource down on both
	b.Adm("leave-resource", "r0")
	a.WaitFor("knows that hostb has left", func() bool { return a.Res("data-"+b.Name) == "" })
	a.Adm("secondary", "r0")
	a.Adm("leave-resource", "r0")
	a.Adm("delete-resource", "r0")
	for _, n := range c.Nodes {
		n.WaitFor("nothing is left of r0", func() bool {
			n.Adm("cron")
			left, _ := filepath.Glob(filepath.Join(n.Root(), "resource-r0", "*-*"))
			for _, l := range left {
				if v, err := os.Readlink(l); err != nil || v != ".deleted" {
					if st, err := os.Lstat(l); err == nil && !st.IsDir() {
						return false
					}
				}
			}
			return true
		})
	}

	b.Adm("create-resource", "r0", w.disks[b], "r0", "16M")
	b.Adm("wait-resource", "r0", "is-device")
	w.readBack("export of the second life", b)
	a.JoinResource(w.disks[a])
	w.start(b)
	w.more(b, 200)
	w.finish()
	w.equal(b)
}
