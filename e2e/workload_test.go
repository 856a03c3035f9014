package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// workload is an application on a filesystem that knows what it was promised.
type workload interface {
	// run works in dir until stop is closed.
	run(dir string, stop <-chan struct{}) error
	// steps is the number of confirmed steps.
	steps() int
	// check looks at a copy of dir: everything that was confirmed before the instant
	// asOf must be there, and nothing may be damaged. It returns how many steps are
	// there, which grows from copy to copy.
	check(dir string, asOf uint64) (int, error)
}

// confirmed counts confirmed steps and remembers when they were.
type confirmed struct {
	tick func() uint64

	mu sync.Mutex
	at []uint64 // at[i]: step i was confirmed
}

func (c *confirmed) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = append(c.at, c.tick())
}

func (c *confirmed) steps() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.at)
}

// before is how many steps were confirmed before the instant.
func (c *confirmed) before(asOf uint64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.at) && c.at[n] < asOf {
		n++
	}
	return n
}

// hashed writes files that are named by their content (reference 8.10): temporary
// name, write, fsync, rename, fsync of the directory. Every fourth step gives a file a second
// name, every fifth appends to a journal, every seventh cuts a file short and removes it.
type hashed struct {
	confirmed
	seed     uint64
	omitSync int // every n-th fsync of a file is left out: negative control; 0: none
}

// content is the content of the file of a step.
func (w *hashed) content(step int) []byte {
	rnd := rand.New(rand.NewPCG(w.seed, uint64(step)))
	p := make([]byte, 1+rnd.IntN(24<<10))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

func hashName(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:12])
}

const (
	journalLine = 32 // bytes of a line of the journal
	doomed      = "doomed"
)

func (w *hashed) run(dir string, stop <-chan struct{}) error {
	journal, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer journal.Close()
	if err := syncPath(dir); err != nil {
		return err
	}
	for step := 0; ; step++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := w.step(dir, journal, step); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		w.add()
	}
}

func (w *hashed) step(dir string, journal *os.File, step int) error {
	omit := w.omitSync > 0 && step%w.omitSync == 0
	p := w.content(step)
	tmp, final := filepath.Join(dir, "tmp"), filepath.Join(dir, hashName(p))
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil && !omit {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	if step%4 == 3 {
		if err := os.Link(final, final+".link"); err != nil {
			return err
		}
	}
	if step%7 == 6 {
		if err := w.doom(filepath.Join(dir, doomed), step); err != nil {
			return err
		}
	}
	if !omit {
		if err := syncPath(dir); err != nil {
			return err
		}
	}
	if step%5 == 4 {
		if _, err := fmt.Fprintf(journal, "%0*d\n", journalLine-1, step); err != nil {
			return err
		}
		return journal.Sync()
	}
	return nil
}

// doom makes a file, cuts it, or removes it.
func (w *hashed) doom(path string, step int) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return os.WriteFile(path, w.content(step), 0o600)
	case st.Size() > 0:
		return os.Truncate(path, 0)
	}
	return os.Remove(path)
}

func (w *hashed) check(dir string, asOf uint64) (int, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	there := map[string]bool{}
	for _, e := range list {
		name := strings.TrimSuffix(e.Name(), ".link")
		if name == "journal" || name == "tmp" || name == doomed {
			continue
		}
		p, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, err
		}
		if hashName(p) != name {
			return 0, fmt.Errorf("the content of %s (%d bytes) is not what its name says", e.Name(), len(p))
		}
		there[e.Name()] = true
	}
	n := w.before(asOf)
	for step := range n {
		name := hashName(w.content(step))
		if !there[name] || step%4 == 3 && !there[name+".link"] {
			return 0, fmt.Errorf("%s of step %d is missing, of %d steps that fsync had confirmed", name, step, n)
		}
	}
	// What follows is a prefix, too: one step at a time is made.
	for ; there[hashName(w.content(n))]; n++ {
	}
	if w.omitSync == 0 && len(there) > n+n/4+1 {
		return 0, fmt.Errorf("%d names, but only the first %d steps are whole", len(there), n)
	}
	return n, w.checkJournal(filepath.Join(dir, "journal"), asOf)
}

func (w *hashed) checkJournal(path string, asOf uint64) error {
	n := w.before(asOf) / 5
	p, err := os.ReadFile(path)
	if n == 0 && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(p) < n*journalLine {
		return fmt.Errorf("%s has %d bytes, fsync had confirmed %d", path, len(p), n*journalLine)
	}
	for i := range len(p) / journalLine {
		if want := fmt.Sprintf("%0*d\n", journalLine-1, i*5+4); string(p[i*journalLine:(i+1)*journalLine]) != want {
			return fmt.Errorf("%s: line %d is %q, want %q", path, i, p[i*journalLine:(i+1)*journalLine], want)
		}
	}
	return nil
}

// sqlite is a database (reference 8.10). One transaction inserts n into a log,
// moves an amount between two of 100 accounts and sets the counter to n.
type sqlite struct {
	confirmed
	mode string // of the journal: WAL or DELETE
}

const sqliteWriter = `
import sqlite3, random, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
assert db.execute("pragma journal_mode=" + sys.argv[2]).fetchone()[0].upper() == sys.argv[2]
db.execute("pragma synchronous=" + sys.argv[3])
db.execute("pragma wal_autocheckpoint=40")
db.execute("begin immediate")
db.execute("create table log(id integer primary key, t text)")
db.execute("create table account(id integer primary key, amount integer)")
db.execute("create table counter(n integer)")
db.execute("insert into counter values(0)")
db.executemany("insert into account values(?,1000)", [(i,) for i in range(100)])
db.execute("commit")
print("ready", flush=True)
n = 0
for line in sys.stdin:
    n += 1
    a, b, m = random.randrange(100), random.randrange(100), random.randrange(50)
    db.execute("begin immediate")
    db.execute("insert into log values(?,?)", (n, "x" * random.randrange(400)))
    db.execute("update account set amount=amount-? where id=?", (m, a))
    db.execute("update account set amount=amount+? where id=?", (m, b))
    db.execute("update counter set n=?", (n,))
    db.execute("commit")
    print(n, flush=True)
`

const sqliteChecker = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
problems = [r[0] for r in db.execute("pragma integrity_check")]
assert problems == ["ok"], problems
n = db.execute("select n from counter").fetchone()[0]
count, low, high = db.execute("select count(*), coalesce(min(id),1), coalesce(max(id),0) from log").fetchone()
assert (count, low, high) == (n, 1, n), "counter %d, but %d rows from %d to %d" % (n, count, low, high)
total = db.execute("select sum(amount) from account").fetchone()[0]
assert total == 100000, "the sum of all accounts is %d" % total
print(n)
`

func (w *sqlite) file(dir string) string { return filepath.Join(dir, "db-"+w.mode) }

func (w *sqlite) run(dir string, stop <-chan struct{}) error {
	if w.mode == "DELETE" {
		// FULL does not sync the directory after it has removed the journal, and a power
		// cut may bring it back with what it rolls back.
		return w.runSync(dir, "EXTRA", stop)
	}
	return w.runSync(dir, "FULL", stop)
}

func (w *sqlite) runSync(dir, synchronous string, stop <-chan struct{}) error {
	cmd := exec.Command("python3", "-c", sqliteWriter, w.file(dir), w.mode, synchronous)
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := start(cmd); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	for {
		if _, err = lines.ReadString('\n'); err != nil {
			break
		}
		w.add() // the first step is that the database exists
		select {
		case <-stop:
			err = in.Close()
			_, rest := io.Copy(io.Discard, lines)
			return errors.Join(err, rest, cmd.Wait())
		default:
		}
		if _, err = fmt.Fprintln(in); err != nil {
			break
		}
	}
	return fmt.Errorf("sqlite %s: %w: %w\n%s", w.mode, err, cmd.Wait(), said.String())
}

func (w *sqlite) check(dir string, asOf uint64) (int, error) {
	n := w.before(asOf)
	if n == 0 {
		return 0, nil // not even the tables had been promised
	}
	out, err := exec.Command("python3", "-c", sqliteChecker, w.file(dir)).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("sqlite %s: %w\n%s", w.mode, err, out)
	}
	var counter int
	if _, err := fmt.Sscan(string(out), &counter); err != nil {
		return 0, fmt.Errorf("sqlite %s: %q: %w", w.mode, out, err)
	}
	switch made := w.steps(); {
	case counter < n-1:
		return 0, fmt.Errorf("sqlite %s: the counter is %d, but transaction %d was committed", w.mode, counter, n-1)
	case counter > made:
		return 0, fmt.Errorf("sqlite %s: the counter is %d, but only %d transactions were begun", w.mode, counter, made)
	}
	return counter + 1, nil
}

// crew runs workloads at the same time in directories of their own.
type crew struct {
	t    testing.TB
	list map[string]workload
	stop chan struct{}
	errs chan error
}

func startCrew(t testing.TB, dir string, list map[string]workload) *crew {
	t.Helper()
	c := &crew{t: t, list: list, stop: make(chan struct{}), errs: make(chan error, len(list))}
	for name := range list {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := syncPath(dir); err != nil {
		t.Fatal(err)
	}
	for name, w := range list {
		go func() { c.errs <- w.run(filepath.Join(dir, name), c.stop) }()
	}
	return c
}

// finish ends the workloads, which must not have failed.
func (c *crew) finish() {
	c.t.Helper()
	close(c.stop)
	for range c.list {
		if err := <-c.errs; err != nil {
			c.t.Fatal(err)
		}
	}
}

// least is the smallest number of steps that a workload has made.
func (c *crew) least() int {
	n := int(^uint(0) >> 1)
	for _, w := range c.list {
		n = min(n, w.steps())
	}
	return n
}

// check checks all of them on a copy, and returns what is there of each.
func (c *crew) check(dir string, asOf uint64) (map[string]int, error) {
	there := map[string]int{}
	for name, w := range c.list {
		n, err := w.check(filepath.Join(dir, name), asOf)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		there[name] = n
	}
	return there, nil
}
