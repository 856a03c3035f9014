package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mars/internal/vfs"
	"mars/logfile"
	"mars/symlinktree"
)

// sampleEvery is how often the sampler looks.
const sampleEvery = 200 * time.Millisecond

// sampledNumbers are the primitives that a sampler compares with the truth, one
// line each in its macro text.
var sampledNumbers = strings.Fields(`is-primary is-attach is-replay is-fetch is-sync is-consistent is-orphan is-split-brain todo-attach todo-fetch
	todo-replay todo-primary device-present device-opened alive-age replay-age sync-pos sync-size sync-rest replay-pos replay-rest fetch-pos fetch-rest
	fetch-size work-pos work-rest work-size occupied-size device-rate fetch-rate replay-rate sync-rate device-ops-rate replay-ops-rate
	replay-lognr fetch-lognr work-lognr role replstate diskstate`)

// observation is what is found on the disks of the nodes at one moment.
type observation struct {
	at      time.Time
	logs    int64 // bytes of log files of this node
	primary int64 // bytes of log files of the primary
	socket  bool  // the device's socket is there
}

// sample is one picture, and what was true right before and right after it.
type sample struct {
	phase         string
	before, after observation
	values        map[string]string
}

func (s *sample) num(name string) int64 {
	f, err := strconv.ParseFloat(s.values[name], 64)
	if err != nil {
		return -1 << 60
	}
	return int64(f)
}

// sampler watches a node with one long-running marsadm.
type sampler struct {
	t          testing.TB
	n, primary *Node
	cmd        *exec.Cmd
	wg         sync.WaitGroup

	mu      sync.Mutex
	phase   string
	samples []*sample
}

func startSampler(n, primary *Node) *sampler {
	n.t.Helper()
	s := &sampler{t: n.t, n: n, primary: primary, phase: "start"}
	var text strings.Builder
	for _, name := range sampledNumbers {
		fmt.Fprintf(&text, `%s=%%%s{}\n`, name, name)
	}
	// What this node knows of the primary.
	fmt.Fprintf(&text, `primary-age=%%alive-age{%s}\nprimary-alive=%%is-alive{%s}\nreal-time=%%real-time{}\nend\n`, primary.Name, primary.Name)
	s.cmd = exec.Command(filepath.Join(n.Bin, "marsadm"), "view", "r0", "--window=3", fmt.Sprintf("--watch=%.3f", sampleEvery.Seconds()), "--macro="+text.String())
	s.cmd.Env = n.env()
	var errs bytes.Buffer
	s.cmd.Stderr = &errs
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = start(s.cmd)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.read(out)
	}()
	n.t.Cleanup(s.stop)
	return s
}

// stop ends the process; it may be called twice.
func (s *sampler) stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(os.Interrupt)
	s.wg.Wait()
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("marsadm --watch on %s: %v", s.n.Name, err)
	}
	s.cmd = nil
}

func (s *sampler) read(out io.Reader) {
	before := s.observe()
	values := map[string]string{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if name, value, ok := strings.Cut(line, "="); ok {
			values[name] = value
		}
		if line != "end" {
			continue
		}
		after := s.observe()
		// A picture that was taken before the observation, because this process got no
		// processor, proves nothing.
		taken, err := symlinktree.ParseStamp(values["real-time"])
		if err != nil {
			s.t.Errorf("real-time: %v", err)
		}
		s.mu.Lock()
		if taken.Time().Sub(before.at) > sampleEvery/2 {
			s.samples = append(s.samples, &sample{s.phase, before, after, values})
		}
		s.mu.Unlock()
		before, values = after, map[string]string{}
	}
}

func (s *sampler) observe() observation {
	o := observation{logs: logBytes(s.n), primary: logBytes(s.primary), at: time.Now()}
	_, err := os.Stat(s.n.Socket("r0"))
	o.socket = err == nil
	return o
}

func logBytes(n *Node) (sum int64) {
	list, _ := filepath.Glob(filepath.Join(n.Root(), "resource-r0", "log-*"))
	for _, f := range list {
		if st, err := os.Lstat(f); err == nil && st.Mode().IsRegular() {
			sum += st.Size()
		}
	}
	return sum
}

// enter names what is being done from now on, and drops what was in between.
func (s *sampler) enter(phase string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = phase
}

// of are the samples of a phase without the first one, which may be half before it.
func (s *sampler) of(phase string) []*sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*sample
	for _, x := range s.samples {
		if x.phase == phase {
			out = append(out, x)
		}
	}
	return out[min(1, len(out)):]
}

// await waits for a number of samples in the present phase.
func (s *sampler) await(n int) {
	s.t.Helper()
	s.mu.Lock()
	phase := s.phase
	s.mu.Unlock()
	s.primary.t.Helper()
	waitUntil(s.t, fmt.Sprintf("%d samples of %q on %s", n, phase, s.n.Name), func() bool { return len(s.of(phase)) >= n })
}

func waitUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(waitLimit); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

// judge compares all samples with the truth as far as it can be bounded at any
// time. Rates must be zero when nothing has moved for quiet.
const quiet = 6 * time.Second

func (s *sampler) judge() {
	s.t.Helper()
	s.mu.Lock()
	list := s.samples
	s.mu.Unlock()
	var moved struct {
		logs, primary, replay time.Time
		pos                   int64
	}
	bad := map[string]int{}
	complain := func(x *sample, what, format string, args ...any) {
		if bad[what]++; bad[what] <= 3 {
			s.t.Errorf("%s, %s at %s: %s: %s\n%v", s.n.Name, x.phase, x.after.at.Format("05.000"), what, fmt.Sprintf(format, args...), x.values)
		}
	}
	for _, x := range list {
		if len(x.values) < len(sampledNumbers) {
			complain(x, "values", "only %d", len(x.values))
			continue
		}
		if x.before.logs != x.after.logs || moved.logs.IsZero() {
			moved.logs = x.after.at
		}
		if x.before.primary != x.after.primary || moved.primary.IsZero() {
			moved.primary = x.after.at
		}
		if p := x.num("replay-pos"); p != moved.pos || moved.replay.IsZero() {
			if p < moved.pos {
				complain(x, "replay-pos", "went back from %d", moved.pos)
			}
			moved.pos, moved.replay = p, x.after.at
		}
		// What replay has taken up is on the disk only after the next writeback.
		if x.values["is-replay"] == "1" && x.num("replay-rest") > 0 {
			moved.replay = x.after.at
		}
		within := func(name string, lo, hi int64) {
			if v := x.num(name); v < lo || v > hi {
				complain(x, name, "%d is not between %d and %d", v, lo, hi)
			}
		}
		within("occupied-size", x.before.logs, x.after.logs)
		within("fetch-pos", x.before.logs, x.after.logs)
		within("fetch-size", x.before.logs, x.after.primary)
		within("replay-pos", 0, x.num("fetch-pos"))
		within("fetch-rest", x.num("fetch-size")-x.num("fetch-pos"), x.num("fetch-size")-x.num("fetch-pos"))
		within("replay-rest", x.num("fetch-pos")-x.num("replay-pos"), x.num("fetch-pos")-x.num("replay-pos"))
		within("work-rest", x.num("fetch-rest")+x.num("replay-rest"), x.num("fetch-rest")+x.num("replay-rest"))
		within("sync-rest", x.num("sync-size")-x.num("sync-pos"), x.num("sync-size")-x.num("sync-pos"))
		within("is-split-brain", 0, 0)
		// A marsd that was killed leaves its socket and its links.
		if x.before.socket == x.after.socket && x.phase != "killed" && x.phase != "start again" {
			within("device-present", int64(b2i(x.after.socket)), int64(b2i(x.after.socket)))
		}
		for _, r := range []struct {
			name string
			last time.Time
		}{{"fetch-rate", moved.logs}, {"replay-rate", moved.replay}, {"device-rate", moved.primary}, {"replay-ops-rate", moved.replay}} {
			if x.before.at.Sub(r.last) > quiet {
				within(r.name, 0, 0)
			}
		}
	}
	for what, n := range bad {
		if n > 3 {
			s.t.Errorf("%s: %s was wrong %d times of %d", s.n.Name, what, n, len(list))
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// stale says how old news about something that stopped at a moment must be: never
// younger than that, and not much older.
func (x *sample) stale(t testing.TB, name string, since time.Time) {
	t.Helper()
	lo, hi := x.before.at.Sub(since).Seconds()-1, x.after.at.Sub(since).Seconds()+3
	if v := float64(x.num(name)); v < lo || v > hi {
		t.Errorf("%s: %s is %v, the truth is between %.1f and %.1f", x.phase, name, v, lo, hi)
	}
}

// checkPrefix is P4, from the disk and the logs alone: outside the dirty zone the
// disk is what the log says up to the replay position. The base image is zeros.
func checkPrefix(t testing.TB, n *Node, disk string) {
	t.Helper()
	pos, err := symlinktree.ParseReplay(n.Res("replay-" + n.Name))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	want, mixed := make([]byte, len(got)), make([]bool, len(got)/512)
	dir := filepath.Join(n.Root(), "resource-r0")
	list, err := logfile.List(vfs.OS, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Name.Seq > pos.Seq {
			break
		}
		f, err := os.Open(filepath.Join(dir, l.Name.String()))
		if err != nil {
			t.Fatal(err)
		}
		end := l.Size
		if l.Name.Seq == pos.Seq {
			end = pos.Min + pos.Len
		}
		r := logfile.NewReader(f, l.Size, l.Name, logfile.ReaderOptions{End: end})
		for {
			rec, err := r.Next(context.Background())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s of %s: %v", l.Name, n.Name, err)
			}
			data := rec.Data
			if rec.Code == logfile.CodeDiscard || rec.Code == logfile.CodeZeroes {
				length, err := logfile.ParseRangePayload(rec.Data)
				if err != nil {
					t.Fatal(err)
				}
				data = make([]byte, length)
			}
			if l.Name.Seq == pos.Seq && rec.End() > pos.Min {
				for b := rec.Pos / 512; b*512 < rec.Pos+int64(len(data)); b++ {
					mixed[b] = true
				}
				continue
			}
			copy(want[rec.Pos:], data)
		}
		f.Close()
	}
	different := 0
	for b := range mixed {
		if !mixed[b] && !bytes.Equal(got[b*512:b*512+512], want[b*512:b*512+512]) {
			different++
		}
	}
	if different > 0 {
		t.Errorf("%s: %d of %d sectors are not what the log says up to %s", n.Name, different, len(mixed), pos)
	}
	if zone := len(mixed) - len(slices.DeleteFunc(mixed, func(b bool) bool { return b })); pos.Len == 0 && zone > 0 {
		t.Errorf("%d sectors are mixed although the zone is empty", zone)
	}
}

// TestSampler compares what views print with what is on the disks, every 200 ms,
// while a node is paused, killed and cut off.
func TestSampler(t *testing.T) {
	t.Parallel()
	c := NewCluster(t, 2, WithNetwork(), WithArgs("--alive-window", "3s"))
	a, b := c.Nodes[0], c.Nodes[1]
	image := make([]byte, 16*mib)
	disks := map[*Node]string{a: a.Disk("disk", int64(len(image))), b: b.Disk("disk", int64(len(image)))}
	a.CreateResource(disks[a])
	b.JoinResource(disks[b])
	sa, sb := startSampler(a, a), startSampler(b, a)
	both := func(f func(s *sampler)) { f(sa); f(sb) }

	// Load: numbers move.
	l := startLoad(a, image)
	both(func(s *sampler) { s.enter("load") })
	l.more(a, 400)
	both(func(s *sampler) { s.await(15) })
	busy := 0
	for _, x := range sa.of("load") {
		busy += b2i(x.num("device-rate") > 0)
	}
	if n := len(sa.of("load")); busy < n/3 {
		t.Errorf("only %d of %d samples see the device's load", busy, n)
	}

	// Pause: the disk stands still at a prefix, and says so.
	b.Adm("pause-replay", "r0")
	b.Adm("wait-resource", "r0", "is-replay-off")
	sb.enter("paused")
	sb.await(10)
	checkPrefix(t, b, disks[b])
	for _, x := range sb.of("paused") {
		if x.values["is-replay"] != "0" || x.values["todo-replay"] != "0" || x.values["is-consistent"] != "1" || x.values["replstate"] != "PausedReplay" {
			t.Errorf("paused: %v", x.values)
		}
	}
	if first, last := ends(sb.of("paused")); first.num("replay-pos") != last.num("replay-pos") || last.num("fetch-pos") <= first.num("fetch-pos") {
		t.Errorf("paused: replay %d..%d, fetch %d..%d", first.num("replay-pos"), last.num("replay-pos"), first.num("fetch-pos"), last.num("fetch-pos"))
	}
	sb.enter("resumed")
	b.Adm("resume-replay", "r0")
	b.WaitFor("replay goes on", func() bool { _, x := ends(sb.of("resumed")); return x != nil && x.values["is-replay"] == "1" })

	// Cut: ages grow with the clock, the primary counts as unreachable in time.
	c.Isolate(b)
	cut := time.Now()
	sb.enter("cut")
	b.WaitFor("the primary counts as unreachable", func() bool {
		_, x := ends(sb.of("cut"))
		return x != nil && x.values["replstate"] == "PrimaryUnreachable"
	})
	sb.await(25)
	for _, x := range sb.of("cut") {
		x.stale(t, "primary-age", cut)
		if since := x.before.at.Sub(cut); x.values["primary-alive"] == "1" && since > 5*time.Second {
			t.Errorf("cut for %s, and the primary counts as alive", since)
		}
	}
	c.Heal()
	sb.enter("healed")
	b.WaitFor("the primary is heard", func() bool { _, x := ends(sb.of("healed")); return x != nil && x.values["primary-alive"] == "1" })

	// Kill: what is left on the disk is P4; nothing of it is alive any more.
	b.Kill()
	killed := time.Now()
	sb.enter("killed")
	checkPrefix(t, b, disks[b])
	waitUntil(t, "silence of b is noticed", func() bool { _, x := ends(sb.of("killed")); return x != nil && x.values["replstate"] == "UnResponsive" })
	sb.await(20)
	pos, err := symlinktree.ParseReplay(b.Res("replay-" + b.Name))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range sb.of("killed") {
		x.stale(t, "alive-age", killed)
		if x.before.at.Sub(killed) > 5*time.Second && (x.values["is-consistent"] == "1") != (pos.Len == 0) {
			t.Errorf("killed with the zone %s: is-consistent is %s", pos, x.values["is-consistent"])
		}
		for _, r := range []string{"fetch-rate", "replay-rate", "sync-rate"} {
			if x.before.at.Sub(killed) > 5*time.Second && x.num(r) != 0 {
				t.Errorf("killed: %s is %s", r, x.values[r])
			}
		}
	}
	sb.enter("start again")
	b.Start()
	b.WaitFor("it replays again", func() bool { _, x := ends(sb.of("start again")); return x != nil && x.values["is-replay"] == "1" })

	// Quiet: everything is there, and everything falls to zero.
	l.finish()
	Settle(a, b)
	both(func(s *sampler) { s.enter("quiet") })
	waitUntil(t, "rates fall to zero", func() bool { return allZero(sa) && allZero(sb) })
	both(func(s *sampler) { s.enter("still quiet"); s.await(5) })
	for _, x := range sb.of("still quiet") {
		if x.values["diskstate"] != "UpToDate" || x.num("work-rest") != 0 || x.values["is-consistent"] != "1" || x.num("work-size") != x.after.primary {
			t.Errorf("quiet: %v, the primary has %d bytes of log", x.values, x.after.primary)
		}
	}
	both(func(s *sampler) { s.stop(); s.judge() })
	equalDisks(t, image, a, disks)
}

// allZero: no rate is left in the latest sample.
func allZero(s *sampler) bool {
	_, x := ends(s.of("quiet"))
	if x == nil {
		return false
	}
	for _, r := range []string{"device-rate", "fetch-rate", "replay-rate", "sync-rate", "device-ops-rate", "replay-ops-rate"} {
		if x.num(r) != 0 {
			return false
		}
	}
	return true
}

// ends are the first and the last sample, nil if there is none.
func ends(list []*sample) (first, last *sample) {
	if len(list) == 0 {
		return nil, nil
	}
	return list[0], list[len(list)-1]
}

// errorProbe counts complaints.
type errorProbe struct {
	testing.TB
	n int
}

func (p *errorProbe) Errorf(string, ...any) { p.n++ }
func (p *errorProbe) Helper()               {}

// TestSamplerSeesLies is the sampler's negative control: one wrong number in one
// sample is a complaint, and none is not.
func TestSamplerSeesLies(t *testing.T) {
	t.Parallel()
	sound := func() *sample {
		x := &sample{phase: "x", values: map[string]string{}}
		x.before = observation{at: time.Unix(100, 0), logs: 50, primary: 80}
		x.after = x.before
		x.after.at = time.Unix(101, 0)
		for _, name := range sampledNumbers {
			x.values[name] = "0"
		}
		for name, v := range map[string]string{"occupied-size": "50", "fetch-pos": "50", "fetch-size": "80", "fetch-rest": "30", "replay-pos": "40", "replay-rest": "10", "work-rest": "40"} {
			x.values[name] = v
		}
		return x
	}
	judge := func(change map[string]string) int {
		first, last := sound(), sound()
		last.before.at, last.after.at = time.Unix(200, 0), time.Unix(201, 0)
		for k, v := range change {
			last.values[k] = v
		}
		p := &errorProbe{TB: t}
		(&sampler{t: p, n: &Node{Name: "x"}, samples: []*sample{first, last}}).judge()
		return p.n
	}
	if n := judge(nil); n != 0 {
		t.Errorf("%d complaints about the truth", n)
	}
	for name, lie := range map[string]string{"occupied-size": "51", "fetch-pos": "49", "fetch-size": "81", "replay-pos": "39", "fetch-rest": "29", "replay-rest": "11",
		"work-rest": "41", "sync-rest": "1", "is-split-brain": "1", "device-present": "1", "fetch-rate": "1", "replay-rate": "1", "device-rate": "1"} {
		if judge(map[string]string{name: lie}) == 0 {
			t.Errorf("nobody complains that %s is %s", name, lie)
		}
	}
}
