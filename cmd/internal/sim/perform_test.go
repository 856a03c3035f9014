package sim

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"
	"mars/internal/vfs/crashfs"
)

// checkEvery is the time between two looks, beside those at events.
const checkEvery = 700 * time.Millisecond

// perform lets the events happen, and looks at everything at each of them.
func (w *world) perform() {
	next := checkEvery
	for _, e := range w.s.events {
		for next < e.at {
			w.until(next)
			w.check("on the way")
			next += checkEvery
		}
		w.until(e.at)
		w.check("before " + e.kind.String())
		if w.failed() {
			return
		}
		w.happen(e)
		synctest.Wait()
	}
	for ; next <= w.s.length; next += checkEvery {
		w.until(next)
		w.check("on the way")
	}
}

func (w *world) until(t time.Duration) {
	time.Sleep(max(0, t-w.now()))
	synctest.Wait()
}

// fault of the network while it lasts.
type fault struct {
	e    event
	gone bool
}

func (w *world) happen(e event) {
	w.note("%v", e)
	n, to := w.nodes[e.node], w.nodes[e.to]
	switch e.kind {
	case cut, isolate, oneWay, halfOpen, slow, lossy, flips, resets:
		w.netFault(e)
	case powerCut:
		w.powerCut(n, e)
	case kill:
		w.kill(n, e)
	case restart:
		w.work.Go(func() { w.restart(n, e.lasts) })
	case site:
		for _, x := range w.nodes {
			w.powerCut(x, e)
		}
	case clockJump:
		n.clock.jump(jump(e.arg))
	case clockRate:
		n.clock.run(0.5 + float64(e.arg%1000)/500)
	case full:
		w.fill(n, e)
	case diskError:
		w.breakDisk(n, e)
	case burst:
		w.setBurst(true)
		time.AfterFunc(e.lasts, func() { w.setBurst(false) })
	default:
		w.work.Go(func() { w.order(n, to, e) })
	}
}

func (w *world) setBurst(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.burst = on
}

// netFault puts a fault on and takes it off again.
func (w *world) netFault(e event) {
	f := &fault{e: e}
	w.mu.Lock()
	w.faults = append(w.faults, f)
	w.mu.Unlock()
	w.applyFaults()
	time.AfterFunc(e.lasts, func() {
		w.mu.Lock()
		f.gone = true
		w.mu.Unlock()
		w.applyFaults()
	})
	if e.kind == resets {
		for d := time.Duration(0); d < e.lasts; d += 200 * time.Millisecond {
			time.AfterFunc(d, func() { w.net.Reset(w.nodes[e.node].ip, w.nodes[e.to].ip) })
		}
	}
}

// applyFaults sets every link to what all faults together make of it.
func (w *world) applyFaults() {
	w.mu.Lock()
	w.faults = slices.DeleteFunc(w.faults, func(f *fault) bool { return f.gone })
	list := slices.Clone(w.faults)
	w.mu.Unlock()
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a == b {
				continue
			}
			var l faultnet.Link
			for _, f := range list {
				f.e.put(&l, a.i, b.i)
			}
			w.net.SetLink(a.ip, b.ip, l)
		}
	}
}

// put adds the event to what it does to packets from a to b.
func (e event) put(l *faultnet.Link, a, b int) {
	there, back := a == e.node && b == e.to, a == e.to && b == e.node
	switch {
	case e.kind == isolate && (a == e.node || b == e.node), e.kind == cut && (there || back), e.kind == oneWay && there:
		l.Hold = true
	case !there && !back:
	case e.kind == halfOpen:
		l.Silent = true
	case e.kind == slow:
		l.Delay, l.Jitter = time.Duration(e.arg%300)*time.Millisecond, time.Duration(e.arg>>16%100)*time.Millisecond
		l.Rate = 4000 << (e.arg >> 32 % 8)
	case e.kind == lossy:
		l.Loss, l.Jitter = 0.1+float64(e.arg%60)/100, 50*time.Millisecond
	case e.kind == flips:
		l.FlipEvery = 2000 << (e.arg % 6)
	}
}

// powerCut ends the machine when its next few operations have been done: sometimes between
// two of a single write.
func (w *world) powerCut(n *node, e event) {
	inc := n.life()
	if inc == nil || inc.isDead() || w.unordered(n) {
		w.note("%s is down or in emergency mode: no power cut", n.name)
		return
	}
	rng := rand.New(rand.NewPCG(e.arg, uint64(n.i)))
	left := rng.IntN(1 + int(e.arg>>8%40))
	policy := crashfs.Policies[int(e.arg>>20)%len(crashfs.Policies)]
	end := make(chan *crashfs.FS, 1)
	inc.fs.OnOp(func(c *crashfs.Cut) {
		if left--; left >= 0 || !inc.claim() {
			return
		}
		img := c.Crash(policy, rng)
		c.PowerCut()
		w.note("%s loses power before %v", n.name, c.Op.Kind)
		end <- img
		inc.die(true)
	})
	w.work.Go(func() {
		var img *crashfs.FS
		select {
		case img = <-end:
		case <-inc.dead:
			select {
			case img = <-end:
			default:
				return // of something else
			}
		case <-time.After(300 * time.Millisecond): // it had nothing to do
			inc.fs.OnOp(nil)
			select {
			case img = <-end:
			default:
				if !inc.claim() {
					return // it has been stopped, or died of something else
				}
				img = inc.fs.Crash(policy, rng)
				inc.fs.PowerCut()
				w.note("%s loses power", n.name)
				inc.die(true)
			}
		}
		w.reboot(n, img, e.lasts, true)
	})
}

// die ends everything of this life at once: whatever is on its way to or from it is lost.
func (inc *incarnation) die(power bool) {
	inc.once.Do(func() { close(inc.dead) })
	w := inc.n.w
	w.mu.Lock()
	for _, h := range w.history {
		if power && h.server != nil && h.server.n == inc.n {
			h.power = true
		}
	}
	w.mu.Unlock()
	inc.host.Down()
}

// kill ends the process only.
func (w *world) kill(n *node, e event) {
	inc := n.life()
	if inc == nil || inc.isDead() || w.unordered(n) {
		w.note("%s is down or in emergency mode: no kill", n.name)
		return
	}
	if !inc.claim() {
		return
	}
	img := inc.fs.KillState()
	inc.fs.PowerCut()
	inc.die(false)
	w.work.Go(func() { w.reboot(n, img, e.lasts, false) })
}

// reboot starts the machine again from what is on its disks. What is left of its former
// life ends by itself.
func (w *world) reboot(n *node, img *crashfs.FS, after time.Duration, power bool) {
	w.stat(func(s *stats) { s.crashes++ })
	inc := n.life()
	inc.node.Abandon()
	inc.cancel()
	n.live(nil, img)
	w.checkImage(n, img)
	select {
	case <-time.After(after):
	case <-w.hurry:
	}
	w.start(n)
}

func (w *world) restart(n *node, after time.Duration) {
	inc := n.life()
	if inc == nil || inc.isDead() {
		return
	}
	inc.cancel()
	select {
	case <-inc.ended:
	case <-inc.dead:
	}
	if !inc.claim() {
		return // a crash was faster
	}
	inc.host.Down()
	inc.fs.OnOp(nil)
	n.live(nil, nil)
	select {
	case <-time.After(after):
	case <-w.hurry:
	}
	w.start(n)
}

// fill leaves little space for logs for a while.
func (w *world) fill(n *node, e event) {
	fs := n.files()
	fs.SetCapacity(1 << 30)
	free, _, err := fs.FreeSpace(root)
	if err != nil {
		return
	}
	fs.SetCapacity(1<<30 - free + int64(e.arg%(6*reserve)))
	w.crowd(n, true)
	time.AfterFunc(e.lasts, func() {
		fs.SetCapacity(0)
		n.files().SetCapacity(0)
		time.AfterFunc(5*time.Second, func() { w.crowd(n, false) })
	})
}

// crowd notes that requests on n may take longer than usual.
func (w *world) crowd(n *node, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n.full = on
}

func (w *world) crowded(n *node) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return n.full
}

func (w *world) breakDisk(n *node, e event) {
	repair := n.files().Inject(crashfs.Fault{Ops: crashfs.OpWrite, Path: diskPath, Prob: 0.3 + float64(e.arg%70)/100, Err: syscall.EIO, Short: e.arg>>32&1 == 0})
	time.AfterFunc(e.lasts, repair)
}

// commandTime is how long a command of the schedule may wait.
const commandTime = 5 * time.Second

// order is what an administrator does.
func (w *world) order(n, to *node, e event) {
	cmd := func(args ...string) bool {
		code, _ := n.marsadm(commandTime, append(args, string(res))...)
		return code == 0
	}
	again := func(verb string) {
		select {
		case <-time.After(e.lasts):
		case <-w.hurry:
		}
		cmd(verb)
	}
	switch e.kind {
	case handover:
		w.handover(n)
	case failover:
		n.failover(commandTime)
	case giveUpRole:
		w.idle(func() { cmd("secondary") })
	case pauseFetch:
		cmd("pause-fetch")
		again("resume-fetch")
	case pauseReplay:
		cmd("pause-replay")
		again("resume-replay")
	case pauseSync:
		cmd("pause-sync")
		again("resume-sync")
	case down:
		w.idle(func() { cmd("down") })
		again("up")
	case invalidate:
		w.halfDone(cmd("invalidate"))
	case leaveJoin:
		if n.get(res.DataPath(n.name)) != "" {
			if !cmd("down") || !cmd("leave-resource") {
				w.halfDone(cmd("up"))
				return
			}
		}
		for range 3 {
			code, _ := n.marsadm(commandTime, "join-resource", string(res), diskPath)
			if w.halfDone(code == 0); code == 0 || w.stopped() {
				break
			}
			time.Sleep(time.Second)
		}
	case rotate:
		cmd("log-rotate")
	case deleteLogs:
		cmd("--force", "log-delete-all")
	}
}

// halfDone notes that a command which makes a replica anew has failed or was interrupted: the
// administrator has to give it again.
func (w *world) halfDone(ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lossy = w.lossy || !ok
}

// idle stops the application everywhere, does something, and starts it again.
func (w *world) idle(f func()) {
	set := func(d int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range w.nodes {
			n.noApp += d
		}
	}
	set(1)
	time.Sleep(200 * time.Millisecond) // the requests under way
	f()
	set(-1)
}

func (w *world) handover(n *node) {
	if w.mutated != nil {
		w.mutated(w, n)
		return
	}
	w.idle(func() { n.marsadm(commandTime, "primary", string(res)) })
}

func (w *world) stopped() bool {
	select {
	case <-w.hurry:
		return true
	default:
		return false
	}
}
