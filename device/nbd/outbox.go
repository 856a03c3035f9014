package nbd

import (
	"errors"
	"sync"
	"time"
)

// outbox are the replies of one connection on their way out, and the accounts of what it has in flight.
//
// Whoever finds no writer at work becomes the writer. The connection's own goroutine writes and
// waits for the client (send). Workers and callbacks of the backend only try (post); what the
// socket does not take at once is left to a goroutine of its own, so that a
// slow client never blocks them. While somebody writes, others just queue: their
// replies go out together in the writer's next call.
type outbox struct {
	w           wire
	maxRequests int
	maxBytes    int64

	mu      sync.Mutex
	cond    sync.Cond // room, or idle; waited for by the connection's goroutine only
	queue   []*buffer
	writing bool
	err     error // of the socket; nothing is sent any more
	waiting int   // requests that workers or Backend.Sync have not yet answered
	syncs   int   // of those: Backend.Sync
	held    int64 // bytes: reserved for replies of those, and queued ones

	// Of the writer.
	batch []*buffer
	vec   [][]byte
}

func newOutbox(w wire, cfg Config) *outbox {
	o := &outbox{w: w, maxRequests: cfg.MaxInFlight, maxBytes: cfg.MaxInFlightBytes}
	o.cond.L = &o.mu
	return o
}

// room waits until another request may be taken on, and returns how many.
func (o *outbox) room() (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && (o.waiting >= o.maxRequests || o.held >= o.maxBytes) {
		o.cond.Wait()
	}
	return o.maxRequests - o.waiting, o.err
}

// inFlight is the number of requests that somebody else will answer.
func (o *outbox) inFlight() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.waiting
}

// waitBytes waits until the bytes held are within the limit.
func (o *outbox) waitBytes() {
	o.mu.Lock()
	for o.err == nil && o.held >= o.maxBytes {
		o.cond.Wait()
	}
	o.mu.Unlock()
}

// fits tells whether reserve would not wait.
func (o *outbox) fits(n int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err != nil || o.held == 0 || o.held+n <= o.maxBytes
}

// reserve counts in a request that somebody else will answer by post, with
// at most n bytes. It waits until that is within the limit; the caller must not hold back replies.
func (o *outbox) reserve(n int64) {
	o.mu.Lock()
	for o.err == nil && o.held != 0 && o.held+n > o.maxBytes {
		o.cond.Wait()
	}
	o.waiting++
	o.held += n
	o.mu.Unlock()
}

// expect counts in requests that Backend.Sync will answer by postSync.
func (o *outbox) expect(requests int) {
	o.mu.Lock()
	o.waiting += requests
	o.syncs += requests
	o.mu.Unlock()
}

// postSync is post for requests that were counted in by expect.
func (o *outbox) postSync(b *buffer, requests int) { o.deliver(b, requests, requests, 0) }

// send queues replies of the connection's goroutine and writes, unless somebody else does.
func (o *outbox) send(list []*buffer) {
	o.mu.Lock()
	mine := o.put(list)
	o.mu.Unlock()
	if mine {
		o.write(true)
	}
}

// post queues a reply to requests that were counted in with reserved bytes. It never waits.
func (o *outbox) post(b *buffer, requests int, reserved int64) { o.deliver(b, requests, 0, reserved) }

func (o *outbox) deliver(b *buffer, requests, syncs int, reserved int64) {
	o.mu.Lock()
	o.waiting -= requests
	o.syncs -= syncs
	o.held -= reserved
	one := [1]*buffer{b}
	mine := o.put(one[:])
	o.cond.Signal()
	o.mu.Unlock()
	if mine {
		o.write(false)
	}
}

// put needs o.mu. It tells whether the caller has become the writer.
func (o *outbox) put(list []*buffer) bool {
	if o.err != nil {
		for _, b := range list {
			b.free()
		}
		return false
	}
	for _, b := range list {
		o.queue = append(o.queue, b)
		o.held += int64(b.n)
	}
	if o.writing || len(o.queue) == 0 {
		return false
	}
	o.writing = true
	return true
}

// maxVec is the number of buffers a system call takes (UIO_MAXIOV is 1024).
const maxVec = 512

// write is the writer: it sends the queue until it is empty. With wait false it hands
// over to a goroutine as soon as the socket is full.
func (o *outbox) write(wait bool) {
	var sent int64
	for {
		o.mu.Lock()
		o.held -= sent
		if o.err != nil || len(o.queue) == 0 {
			o.writing = false
			o.cond.Signal()
			o.mu.Unlock()
			return
		}
		if sent > 0 {
			o.cond.Signal()
		}
		n := min(len(o.queue), maxVec)
		o.batch = append(o.batch[:0], o.queue[:n]...)
		rest := copy(o.queue, o.queue[n:])
		clear(o.queue[rest:])
		o.queue = o.queue[:rest]
		o.mu.Unlock()

		o.vec = o.vec[:0]
		sent = 0
		for _, b := range o.batch {
			o.vec = append(o.vec, b.bytes())
			sent += int64(b.n)
		}
		if !wait {
			n, err := o.w.TryWritev(o.vec)
			if err == nil && int64(n) < sent {
				go o.finish(n, sent)
				return
			}
			o.wrote(err)
			continue
		}
		o.wrote(o.w.Writev(o.vec))
	}
}

// finish goes on where a writer that must not wait has stopped: n bytes of the
// batch are out.
func (o *outbox) finish(n int, sent int64) {
	o.vec = o.vec[:0]
	for _, b := range o.batch {
		o.vec = append(o.vec, b.bytes())
	}
	o.wrote(o.w.Writev(consume(o.vec, n)))
	o.mu.Lock()
	o.held -= sent
	o.mu.Unlock()
	o.write(true)
}

// wrote frees the batch and takes note of a broken socket.
func (o *outbox) wrote(err error) {
	for i, b := range o.batch {
		b.free()
		o.batch[i] = nil
	}
	if err != nil {
		o.fail(err)
	}
}

// fail drops everything queued now and later, and wakes the connection.
func (o *outbox) fail(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
		for i, b := range o.queue {
			o.held -= int64(b.n)
			b.free()
			o.queue[i] = nil
		}
		o.queue = nil
	}
	o.cond.Signal()
	o.mu.Unlock()
	o.w.Shutdown()
}

var errUnanswered = errors.New("the client has left while a FLUSH waited for more than the disk")

// answered waits until nobody will post any more. For syncs it waits no longer than patience: they may wait
// for other nodes, for ever. Their answers are dropped when they come.
func (o *outbox) answered(patience time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.waiting > o.syncs {
		o.cond.Wait()
	}
	if o.syncs == 0 {
		return
	}
	enough := time.AfterFunc(patience, func() { o.fail(errUnanswered) })
	defer enough.Stop()
	for o.waiting > 0 && o.err == nil {
		o.cond.Wait()
	}
}

// drained waits until all replies are sent or the socket is broken.
func (o *outbox) drained() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.writing || (o.err == nil && len(o.queue) > 0) {
		o.cond.Wait()
	}
	return o.err
}
