// Package testutil has helpers that every package's tests share.
package testutil

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// WaitFor polls cond every few milliseconds until it holds, and fails the test
// with what after deadline. Tests wait for predicates; they never sleep.
func WaitFor(t testing.TB, deadline time.Duration, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(deadline)
	for pause := time.Millisecond; ; pause = min(pause*2, 50*time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not reached within %v: %s", deadline, what)
		}
		time.Sleep(pause)
	}
}

// Seed returns the seed of a randomised test: MARS_SEED if set, else one from
// the clock. It prints it, so that a failure can be repeated.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("MARS_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("MARS_SEED=%q: %v", s, err)
		}
		seed = v
	}
	t.Logf("seed %d (repeat with MARS_SEED=%d)", seed, seed)
	return seed
}
