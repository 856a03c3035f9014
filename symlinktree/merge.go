package symlinktree

import (
	"errors"
	"fmt"
)

// mergeChunk is how many entries are merged before other writers get a turn.
const mergeChunk = 64

// Merge takes entries of a peer. The last writer wins on (stamp, value); stamps
// are kept as they are, so that all nodes end up equal whatever the order,
// number and repetition of merges. A tombstone is also kept where there was
// nothing to delete, so that it meets an older link that comes later by another
// way; and it removes a logfile of that name. Bad entries are refused and named
// in a *MergeError; all others are applied. It returns what has changed here.
func (t *Tree) Merge(from string, list []Entry) (changed []Entry, err error) {
	if t.readOnly {
		return nil, fmt.Errorf("merge from %s: %w", from, ErrReadOnly)
	}
	t.mu.Lock()
	err = t.checkNanoseconds()
	t.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("merge from %s: %w", from, err)
	}
	refused := &MergeError{From: from}
	// The beacons go last: who sees a fresh one has what was written before it.
	for _, beacons := range []bool{false, true} {
		for n := 0; n < len(list); {
			n = t.mergeSome(list, n, beacons, refused, &changed)
		}
	}
	return changed, refused.orNil()
}

// mergeSome merges from list[n] on and returns where to go on.
func (t *Tree) mergeSome(list []Entry, n int, beacons bool, refused *MergeError, changed *[]Entry) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for done := 0; n < len(list) && done < mergeChunk; n++ {
		e := list[n]
		if isBeacon(e.Path) != beacons {
			continue
		}
		done++
		got, err := t.mergeOne(e)
		*changed = append(*changed, got...)
		if err != nil {
			refused.add(e.Path, err)
		}
	}
	return n
}

// checkMerge says why an entry of a peer is not acceptable at all.
func (t *Tree) checkMerge(e Entry) error {
	if err := t.checkWrite(e.Path, e.Value); err != nil {
		return err
	}
	if !Replicated(e.Path) {
		return ErrUnreplicated
	}
	if e.Stamp <= 0 {
		return fmt.Errorf("%w: stamp %v is not after 1970", ErrValue, e.Stamp)
	}
	return t.clock.Observe(e.Stamp)
}

// errByHand: the disk differs from memory in a way that must be settled first.
var errByHand = errors.New("edited by hand")

func (t *Tree) mergeOne(e Entry) (changed []Entry, err error) {
	if err := t.checkMerge(e); err != nil {
		return nil, err
	}
	for settled := false; ; settled = true {
		known, isKnown := t.top.Load().entry(e.Path)
		if isKnown && !t.poisoned(known.Stamp) && !t.wins(e, known) {
			return changed, nil
		}
		was, v, err := t.store(e.Path, func(d found) (verdict, error) {
			byHand := d.kind == link && isKnown && !t.inOrder(d, known) ||
				d.kind == absent && isKnown && !known.IsDeleted()
			if byHand && !settled {
				return verdict{}, errByHand
			}
			return t.contest(e, d, t.wins)
		})
		switch {
		case errors.Is(err, errByHand):
			out, err := t.reconcile(e.Path, false)
			changed = append(changed, out.changed...)
			if err != nil && !errors.Is(err, ErrVanished) {
				return changed, err
			}
			continue
		case errors.Is(err, ErrStale):
			// Another process was first, with something newer.
			out, err := t.reconcile(e.Path, false)
			return append(changed, out.changed...), err
		case err != nil:
			return changed, err
		}
		got := e
		if !v.write {
			got = Entry{Path: e.Path, Value: was.value, Stamp: was.stamp}
		}
		if !isKnown || got != known {
			t.publish(change{Entry: got})
			changed = append(changed, got)
		}
		return changed, nil
	}
}
