package symlinktree

import (
	"fmt"
	"testing"
)

// fill makes a tree of resources with 4 directories and 60 links each.
func fill(b *testing.B, tr *Tree, resources int) {
	b.Helper()
	var list []Entry
	for i := range resources {
		r := Resource(fmt.Sprintf("r%04d", i))
		for k := range 15 {
			name := fmt.Sprintf("link-number-%d", k)
			list = append(list,
				Entry{r.Path(name), "1", tr.Clock().Now()}, Entry{r.ActualPath("hostA", name), "1", tr.Clock().Now()},
				Entry{r.ActualPath("hostB", name), "1", tr.Clock().Now()}, Entry{r.TodoPath("hostA", name), "1", tr.Clock().Now()})
		}
	}
	if _, err := tr.Merge("bench", list); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSet(b *testing.B) {
	tr := open(b, b.TempDir(), Options{})
	fill(b, tr, 20)
	for i := 0; b.Loop(); i++ {
		if err := tr.Set("resource-r0001/actual-hostA/link-number-3", fmt.Sprint(i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSetEqual(b *testing.B) {
	tr := open(b, b.TempDir(), Options{})
	fill(b, tr, 1)
	for b.Loop() {
		if err := tr.Set("resource-r0000/link-number-3", "1"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen10k(b *testing.B) {
	root := b.TempDir()
	fill(b, open(b, root, Options{}), 167)
	b.ResetTimer()
	for b.Loop() {
		open(b, root, Options{Passive: true})
	}
}

func BenchmarkRescan10k(b *testing.B) {
	tr := open(b, b.TempDir(), Options{})
	fill(b, tr, 167)
	for b.Loop() {
		if changed, err := tr.Rescan(); err != nil || len(changed) > 0 {
			b.Fatal(changed, err)
		}
	}
}

// One change and a snapshot, with 30,000 links in 2,000 directories.
func BenchmarkPublishAndSnapshot30k(b *testing.B) {
	tr := open(b, b.TempDir(), Options{})
	fill(b, tr, 500)
	for i := 0; b.Loop(); i++ {
		tr.publish(change{Entry: Entry{"resource-r0333/actual-hostA/link-number-3", "1", Stamp(i)}})
		tr.Snapshot().Get("resource-r0200/link-number-7")
	}
}

// One change and the root digest.
func BenchmarkRootDigest30k(b *testing.B) {
	tr := open(b, b.TempDir(), Options{})
	fill(b, tr, 500)
	for i := 0; b.Loop(); i++ {
		tr.publish(change{Entry: Entry{"resource-r0333/actual-hostA/link-number-3", "1", Stamp(i)}})
		tr.RootDigest()
	}
}

func benchmarkMerge(b *testing.B, same bool) {
	tr := open(b, b.TempDir(), Options{})
	list := make([]Entry, 1000)
	for i := 0; b.Loop(); i++ {
		if i == 0 || !same {
			for k := range list {
				list[k] = Entry{fmt.Sprintf("resource-r%d/actual-hostA/link-number-%d", k/20, k%20), fmt.Sprint(i), tr.Clock().Now()}
			}
		}
		if _, err := tr.Merge("bench", list); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMerge1kNewer(b *testing.B) { benchmarkMerge(b, false) }
func BenchmarkMerge1kSame(b *testing.B)  { benchmarkMerge(b, true) }
