package device

import (
	"sync/atomic"
	"time"
)

// counters are the live Counters.
type counters struct {
	readOps, readBytes, writeOps, writeBytes, flushOps atomic.Int64
	replayOps, replayBytes, logBytes, logSyncs         atomic.Int64
	wbOps, wbBytes, cycles, failedCycles               atomic.Int64
	syncSame, syncDifferent, syncRepeated              atomic.Int64
	writerWaits, writerWaited                          atomic.Int64
	directBytes                                        atomic.Int64
}

func (c *counters) snapshot() Counters {
	return Counters{
		ReadOps: c.readOps.Load(), ReadBytes: c.readBytes.Load(),
		WriteOps: c.writeOps.Load(), WriteBytes: c.writeBytes.Load(), FlushOps: c.flushOps.Load(),
		ReplayOps: c.replayOps.Load(), ReplayBytes: c.replayBytes.Load(),
		LogBytes: c.logBytes.Load(), LogSyncs: c.logSyncs.Load(),
		WritebackOps: c.wbOps.Load(), WritebackBytes: c.wbBytes.Load(),
		Cycles: c.cycles.Load(), FailedCycles: c.failedCycles.Load(),
		SyncSame: c.syncSame.Load(), SyncDifferent: c.syncDifferent.Load(), SyncRepeated: c.syncRepeated.Load(),
		DirectBytes: c.directBytes.Load(),
		WriterWaits: c.writerWaits.Load(), WriterWaited: time.Duration(c.writerWaited.Load()),
	}
}
