package nbd

import (
	"sync"

	"mars/internal/nbdproto"
)

// batch are the requests that are executed together: what one receive has delivered.
type batch struct {
	ops     []Op      // for Submit; Data aliases the receive buffer
	opReqs  []request // of ops
	reads   []request // and whatever else may wait for the disk
	flushes []uint64  // handles
	trivial []uint64  // handles of requests with nothing to do
	refused []refused
	disc    bool

	// A refused request whose payload is still being skipped.
	skipped request
	why     *refusal
}

type refused struct {
	r   request
	why *refusal
}

func (b *batch) len() int {
	n := len(b.opReqs) + len(b.reads) + len(b.flushes) + len(b.trivial) + len(b.refused)
	if b.disc {
		n++
	}
	return n
}

func (b *batch) reset() {
	clear(b.ops) // drops references to payloads
	b.ops, b.opReqs, b.reads = b.ops[:0], b.opReqs[:0], b.reads[:0]
	b.flushes, b.trivial, b.refused = b.flushes[:0], b.trivial[:0], b.refused[:0]
	b.disc = false
}

func (b *batch) refuse(r request, why *refusal) {
	b.refused = append(b.refused, refused{r, why})
}

// add takes a checked request.
func (b *batch) add(r request, data []byte) {
	switch r.cmd {
	case nbdproto.CmdDisc:
		b.disc = true
		return
	case nbdproto.CmdFlush:
		b.flushes = append(b.flushes, r.handle)
		return
	case nbdproto.CmdRead, nbdproto.CmdBlockStatus:
		b.reads = append(b.reads, r)
		return
	}
	if r.length == 0 {
		b.trivial = append(b.trivial, r.handle)
		return
	}
	if r.cmd == nbdproto.CmdCache {
		b.reads = append(b.reads, r)
		return
	}
	op := Op{Off: int64(r.off), Len: int64(r.length), FUA: r.fua()}
	switch r.cmd {
	case nbdproto.CmdWrite:
		op.Kind, op.Data = OpWrite, data
	case nbdproto.CmdTrim:
		op.Kind = OpTrim
	case nbdproto.CmdWriteZeroes:
		op.Kind, op.NoHole = OpZeroes, r.flags&nbdproto.CmdFlagNoHole != 0
	}
	b.ops = append(b.ops, op)
	b.opReqs = append(b.opReqs, r)
}

// execute carries out the batch: writes in one Submit, then one Sync for whatever
// waits for durability, then the reads. What can be answered at once is answered in one write.
func (c *conn) execute() {
	b := &c.batch
	total := b.len()
	if b.disc {
		total--
	}
	c.exp.inflight.Add(int64(total))
	c.habit.look(total, b.syncs(), c.out.inFlight())
	now := total // requests answered by this goroutine
	for _, h := range b.trivial {
		c.replyOK(h)
	}
	for _, f := range b.refused {
		c.replyError(f.r.handle, f.why.errno, f.why.text)
	}
	now -= c.submit()
	for i := range b.reads {
		if !c.read(b.reads[i]) {
			now--
		}
	}
	c.exp.inflight.Add(-int64(now))
	c.flushReplies()
}

// submit carries out the writes and starts the sync. It returns the number of
// requests that the sync will answer.
func (c *conn) submit() int {
	b := &c.batch
	var err error
	if len(b.ops) > 0 {
		err = c.exp.Backend.Submit(b.ops)
	}
	var s *syncWait
	if len(b.flushes) > 0 {
		s = newSyncWait(c)
		s.handles = append(s.handles, b.flushes...)
	}
	for i := range b.opReqs {
		r := &b.opReqs[i]
		switch {
		case err != nil:
			c.replyError(r.handle, Errno(err), err.Error())
		case r.fua():
			if s == nil {
				s = newSyncWait(c)
			}
			s.handles = append(s.handles, r.handle)
		default:
			c.replyOK(r.handle)
		}
	}
	if s == nil {
		return 0
	}
	n := len(s.handles)
	if c.habit.may {
		if done, err := c.exp.Backend.SyncNow(); done {
			c.answerSync(s.handles, err)
			s.free()
			return 0
		}
	}
	c.out.expect(n)
	// Acknowledgements of plain writes do not wait for the disk: Sync does not block.
	c.exp.Backend.Sync(s.fn)
	return n
}

// syncWait are requests that wait for Backend.Sync.
type syncWait struct {
	c       *conn
	handles []uint64
	fn      func(error) // done, made once
}

var syncWaits sync.Pool

func newSyncWait(c *conn) *syncWait {
	s, ok := syncWaits.Get().(*syncWait)
	if !ok {
		s = &syncWait{}
		s.fn = s.done
	}
	s.c = c
	return s
}

func (s *syncWait) free() {
	s.c, s.handles = nil, s.handles[:0]
	syncWaits.Put(s)
}

// habit decides whether the connection's goroutine itself waits for the disk when a batch
// wants a sync. That saves two changes of goroutine and thread for each sync, but what the client sends meanwhile
// waits, too. So only if that is nothing (a client that has one request in flight), or nothing
// that would not wait for the same disk (a client that wants everything durable).
type habit struct {
	alone, synced int // batches in a row with one request in flight; with nothing but syncs
	may           bool
}

// patient is how many batches in a row make a habit.
const patient = 8

func (p *habit) look(requests, syncs, inFlight int) {
	p.alone++
	p.synced++
	if requests+inFlight > 1 {
		p.alone = 0
	}
	if syncs < requests {
		p.synced = 0
	}
	p.may = inFlight == 0 && (p.lonely() || p.synced > patient)
}

// lonely: the client has had one request in flight for long, so nothing waits behind it.
func (p *habit) lonely() bool { return p.alone > patient }

// syncs is the number of requests that wait for durability.
func (b *batch) syncs() int {
	n := len(b.flushes)
	for i := range b.opReqs {
		if b.opReqs[i].fua() {
			n++
		}
	}
	return n
}

// answerSync answers requests that a sync of this goroutine has served.
func (c *conn) answerSync(handles []uint64, err error) {
	for _, h := range handles {
		if err == nil {
			c.replyOK(h)
		} else {
			c.replyError(h, Errno(err), err.Error())
		}
	}
}

// done is the callback of Backend.Sync. It does not block.
func (s *syncWait) done(err error) {
	c, n := s.c, len(s.handles)
	var b *buffer
	if err == nil {
		b = getBuffer(n * nbdproto.SimpleReplySize)
		for _, h := range s.handles {
			putOK(b, h)
		}
	} else {
		errno, text := Errno(err), errorText(err.Error())
		b = getBuffer(n * errorReplySize(text))
		for _, h := range s.handles {
			putError(b, c.structured, h, errno, text)
		}
	}
	s.free()
	c.exp.inflight.Add(-int64(n))
	c.out.postSync(b, n)
}

// maxInlineRead is the longest read that the connection's goroutine copies itself.
const maxInlineRead = 256 << 10

// read answers a read, or leaves it to a worker and returns false.
func (c *conn) read(r request) bool {
	if r.cmd != nbdproto.CmdRead {
		c.delegate(r, replyRoom)
		return false
	}
	n := int(r.length)
	if n == 0 {
		c.replyData(r)
		return true
	}
	if n <= maxInlineRead {
		p := c.replyData(r)
		var err error
		done := c.habit.lonely()
		if done { // a worker would only add its wake-up
			err = c.exp.Backend.ReadAt(p, int64(r.off))
		} else {
			done, err = c.exp.Backend.TryReadAt(p, int64(r.off))
		}
		if done && err == nil {
			return true
		}
		c.replies.undo()
		if done {
			c.replyError(r.handle, Errno(err), err.Error())
			return true
		}
	}
	c.delegate(r, int64(n+replyRoom))
	return false
}

// delegate leaves a request to a worker. reserved bounds its reply, in bytes.
func (c *conn) delegate(r request, reserved int64) {
	if !c.out.fits(reserved) {
		c.flushReplies() // nothing may be held back while we wait
	}
	c.out.reserve(reserved)
	c.exp.queueRead(readJob{c, r})
}

// serve runs in a worker.
func (c *conn) serve(r request) {
	switch r.cmd {
	case nbdproto.CmdBlockStatus:
		c.serveStatus(r)
	case nbdproto.CmdCache:
		c.servePrefetch(r)
	default:
		c.serveRead(r)
	}
}

func (c *conn) serveRead(r request) {
	b := getBuffer(int(r.length) + replyRoom)
	p := putData(b, c.structured, r)
	if err := c.exp.Backend.ReadAt(p, int64(r.off)); err != nil {
		b.n = 0
		putError(b, c.structured, r.handle, Errno(err), errorText(err.Error()))
	}
	c.exp.inflight.Add(-1)
	c.out.post(b, 1, int64(r.length)+replyRoom)
}
