package cluster

// Abandon makes the end of Run's context as abrupt as the death of the process would be: nothing is written
// back, released or published any more. The simulation uses it when a machine loses its power; call it
// before the context is cancelled.
func (n *Node) Abandon() { n.abandoned.Store(true) }

// abandon lets everything go that the worker holds, without a last word. It is also for a
// resource that does not stop in time: what is missing on its disk is in its log.
func (w *worker) abandon() {
	for {
		if eng := w.engine(); eng != nil {
			eng.Abandon()
		}
		if w.busy == "" {
			break
		}
		c := <-w.ready // its context has ended
		w.busy = ""
		if c.apply != nil {
			c.apply()
		}
	}
	w.stopFetch()
	w.stopSync()
	if w.export != nil {
		if err := closeExport(w.export); err != nil {
			w.log.Error("cannot take the device away", keyErr, err)
		}
	}
	if w.disk != nil {
		if err := w.disk.Close(); err != nil {
			w.log.Error("cannot close the disk", keyErr, err)
		}
	}
	w.release()
}
