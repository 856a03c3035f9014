package device

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"mars/device/nbd"
	"mars/logfile"
)

// flushing starts a FLUSH and says how it ended; nil while it waits.
func flushing(e *Engine) <-chan error {
	c := make(chan error, 1)
	e.Flush(func(err error) { c <- err })
	return c
}

func isWaiting(t *testing.T, c <-chan error, what string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Fatalf("%s is answered: %v", what, err)
	default:
	}
}

func isAnswered(t *testing.T, c <-chan error, what string) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		must(t, err)
	default:
		t.Fatalf("%s is not answered", what)
	}
}

// confirmWorld is a primary that waits for members.
func confirmWorld(t *testing.T, c Confirm) (w *world, write1 func() logfile.Position) {
	w = newWorld(t, 1, 64<<10, nil, func(c *EngineConfig) { c.WritebackAge = time.Hour })
	w.primary()
	w.e.SetConfirm(c)
	return w, func() logfile.Position {
		t.Helper()
		must(t, w.e.Submit([]nbd.Op{write(0, 1, 4096)}))
		return w.e.logEnd()
	}
}

// TestConfirmSync: without its members a FLUSH is never answered, with them at once;
// plain writes do not wait, and the rule can be changed while something waits.
func TestConfirmSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, more := confirmWorld(t, Confirm{Members: 2})
		if done, err := w.e.FlushNow(); done || err != nil {
			t.Errorf("FlushNow waits for members: %v %v", done, err)
		}
		first := more()
		f := flushing(w.e)
		isWaiting(t, f, "a FLUSH that nobody has")
		must(t, w.e.Received("b", first))
		must(t, w.e.Received("b", first))
		isWaiting(t, f, "a FLUSH that one of two has")
		second := more()
		g := flushing(w.e)
		must(t, w.e.Received("c", first))
		isAnswered(t, f, "a FLUSH that both have")
		isWaiting(t, g, "a FLUSH of what came later")
		time.Sleep(24 * time.Hour)
		isWaiting(t, g, "after a day")
		if s := w.e.Status().Confirm; s.Waiting != 1 || s.Degraded || s.Received != first || s.Oldest.IsZero() {
			t.Errorf("status %+v", s)
		}
		must(t, w.e.Received("b", second))
		must(t, w.e.Received("c", second))
		isAnswered(t, g, "the second FLUSH")
		isAnswered(t, flushing(w.e), "a FLUSH of what they have already")
		more()
		h := flushing(w.e)
		isWaiting(t, h, "the third FLUSH")
		w.e.KeepMembers([]string{"b"})
		w.e.SetConfirm(Confirm{Members: 1})
		isWaiting(t, h, "the third FLUSH, of one member")
		w.e.SetConfirm(Confirm{})
		isAnswered(t, h, "a FLUSH when nobody is waited for any more")
		w.e.SetConfirm(Confirm{Members: 1})
		more()
		last := flushing(w.e)
		isWaiting(t, last, "the last FLUSH")
		must(t, w.e.Close())
		synctest.Wait()
		if err := <-last; !errors.Is(err, syscall.ESHUTDOWN) {
			t.Errorf("a FLUSH at the end of the engine: %v", err)
		}
	})
}

// TestConfirmNear: a FLUSH waits as long as it may, then nothing waits, and after the
// members have caught up they are waited for again.
func TestConfirmNear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience = 100 * time.Millisecond
		w, more := confirmWorld(t, Confirm{Members: 1, Patience: patience})
		defer w.e.Close()
		more()
		f := flushing(w.e)
		time.Sleep(patience - time.Millisecond)
		isWaiting(t, f, "a FLUSH within the patience")
		time.Sleep(2 * time.Millisecond)
		isAnswered(t, f, "a FLUSH after it")
		if s := w.e.Status().Confirm; !s.Degraded || time.Since(s.Since) > 2*time.Millisecond {
			t.Errorf("not degraded: %+v", s)
		}
		late := more()
		isAnswered(t, flushing(w.e), "a FLUSH while degraded")
		time.Sleep(time.Hour)
		more()
		// A member that is an hour late has not caught up.
		must(t, w.e.Received("b", late))
		if !w.e.Status().Confirm.Degraded {
			t.Fatal("a member that is behind counts as near")
		}
		isAnswered(t, flushing(w.e), "a FLUSH while the member is behind")
		time.Sleep(patience / 2)
		must(t, w.e.Received("b", w.e.logEnd()))
		if w.e.Status().Confirm.Degraded {
			t.Fatal("still degraded although the member has everything")
		}
		more()
		f = flushing(w.e)
		isWaiting(t, f, "a FLUSH after they caught up")
		must(t, w.e.Received("b", w.e.logEnd()))
		isAnswered(t, f, "that FLUSH")

		// Who waits for ever is told when the rule changes.
		w.e.SetConfirm(Confirm{Members: 1})
		more()
		f = flushing(w.e)
		time.Sleep(time.Hour)
		isWaiting(t, f, "a FLUSH without a limit")
		w.e.SetConfirm(Confirm{Members: 1, Patience: patience})
		time.Sleep(2 * patience)
		isAnswered(t, f, "that FLUSH after the limit has come")
	})
}

// TestConfirmLies: what a member cannot have is refused.
func TestConfirmLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, more := confirmWorld(t, Confirm{Members: 1})
		defer w.e.Close()
		end := more()
		f := flushing(w.e)
		beyond, foreign := end, end
		beyond.Offset++
		foreign.Log.Host = "elsewhere"
		for _, pos := range []logfile.Position{beyond, foreign} {
			wantErr(t, w.e.Received("b", pos), syscall.EINVAL, "b reports")
		}
		isWaiting(t, f, "a FLUSH that was confirmed by a lie")
		must(t, w.e.Received("b", end))
		isAnswered(t, f, "the FLUSH")
	})
}

// TestConfirmRotation: positions in a later log are beyond all of an earlier one.
func TestConfirmRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, more := confirmWorld(t, Confirm{Members: 1})
		defer w.e.Close()
		more()
		f := flushing(w.e)
		isWaiting(t, f, "a FLUSH in the first log")
		must(t, w.e.Rotate(logfile.Name{Seq: 2, Host: "a"}))
		isWaiting(t, f, "a FLUSH in the first log, after the rotation")
		must(t, w.e.Received("b", w.e.logEnd()))
		isAnswered(t, f, "a FLUSH in a log that the member has finished")
	})
}
