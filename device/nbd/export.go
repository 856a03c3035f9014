package nbd

import (
	"sync"
	"sync/atomic"

	"mars/internal/nbdproto"
)

// export is an Export with its clients.
type export struct {
	Export
	sparse   SparseBackend // nil if the backend is none
	trans    uint16        // transmission flags, DF excepted
	inflight atomic.Int64

	// Guarded by Server.mu.
	conns    map[*conn]struct{}
	removing bool
	changed  chan struct{} // closed and replaced whenever a connection has gone

	// Reads that wait for the disk. Worker goroutines exist only while there are any.
	readMu     sync.Mutex
	readQueue  []readJob // bounded by MaxInFlight of the connections
	readHead   int
	workers    int
	maxWorkers int
}

// readJob is a request that may have to wait for the disk: a read that could not be answered
// at memory speed, a block status or a prefetch.
type readJob struct {
	c *conn
	r request
}

func newExport(e Export, cfg Config) *export {
	// CAN_MULTI_CONN is true because Backend.Sync covers all connections.
	trans := nbdproto.TransHasFlags | nbdproto.TransFlush | nbdproto.TransFUA | nbdproto.TransCanMultiConn
	if e.ReadOnly {
		trans |= nbdproto.TransReadOnly
	} else {
		trans |= nbdproto.TransTrim | nbdproto.TransWriteZeroes
	}
	sparse, _ := e.Backend.(SparseBackend)
	if sparse != nil {
		trans |= nbdproto.TransCache
		if !e.ReadOnly {
			trans |= nbdproto.TransFastZero
		}
	}
	return &export{
		Export:     e,
		sparse:     sparse,
		trans:      trans,
		conns:      make(map[*conn]struct{}),
		changed:    make(chan struct{}),
		maxWorkers: cfg.ReadWorkers,
	}
}

// transFlags are the transmission flags for one client.
func (e *export) transFlags(structured bool) uint16 {
	if structured {
		return e.trans | nbdproto.TransDF
	}
	return e.trans
}

// connList needs Server.mu.
func (e *export) connList() []*conn {
	list := make([]*conn, 0, len(e.conns))
	for c := range e.conns {
		list = append(list, c)
	}
	return list
}

// queueRead hands a read to a worker. The connection has counted it in.
func (e *export) queueRead(j readJob) {
	e.readMu.Lock()
	e.readQueue = append(e.readQueue, j)
	spawn := e.workers < e.maxWorkers
	if spawn {
		e.workers++
	}
	e.readMu.Unlock()
	if spawn {
		go e.readWorker()
	}
}

// readWorker serves the queue until it is empty. Connections wait for their
// reads before they close, so no worker outlives them by more than its return.
func (e *export) readWorker() {
	for {
		e.readMu.Lock()
		if e.readHead == len(e.readQueue) {
			e.readQueue, e.readHead = e.readQueue[:0], 0
			e.workers--
			e.readMu.Unlock()
			return
		}
		j := e.readQueue[e.readHead]
		e.readQueue[e.readHead] = readJob{}
		e.readHead++
		if e.readHead >= 1024 && e.readHead*2 >= len(e.readQueue) {
			n := copy(e.readQueue, e.readQueue[e.readHead:])
			clear(e.readQueue[n:])
			e.readQueue, e.readHead = e.readQueue[:n], 0
		}
		e.readMu.Unlock()
		j.c.serve(j.r)
	}
}
