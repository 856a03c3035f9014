package faultnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func connect(t *testing.T, n *Network) (near, far net.Conn) {
	t.Helper()
	l, err := n.Host("10.0.0.2").Listen("tcp", ":7778")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = n.Host("10.0.0.1").Dial(context.Background(), "tcp", "10.0.0.2:7778")
	if err != nil {
		t.Fatal(err)
	}
	far, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// A perfect stream carries everything once, in order, with any sizes of pieces,
// and ends with EOF.
func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetAll(Link{Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond, Rate: 10 << 20})
		near, far := connect(t, n)
		rng := rand.New(rand.NewPCG(1, 2))
		sum := sha256.New()
		begin := time.Now()
		go func() {
			for range 80 {
				p := make([]byte, rng.IntN(20000))
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				sum.Write(p)
				if _, err := near.Write(p); err != nil {
					t.Error(err)
				}
			}
			near.Close()
		}()
		got := sha256.New()
		size, err := io.Copy(got, far)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
			t.Error("bytes differ")
		}
		took, want := time.Since(begin).Seconds(), float64(size)/float64(10<<20)
		if took < want || took > 1.5*want+0.2 {
			t.Errorf("%d bytes took %.3fs, the rate says %.3fs", size, took, want)
		}
		if n.Streams() != 0 {
			t.Errorf("%d streams still counted", n.Streams())
		}
	})
}

func TestHoldAndDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		near, far := connect(t, n)
		n.Cut([]string{"10.0.0.1"}, []string{"10.0.0.2"})
		if _, err := near.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
		far.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := far.Read(make([]byte, 9)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read over a held link: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := n.Host("10.0.0.1").Dial(ctx, "tcp", "10.0.0.2:7778"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("dial over a held link: %v", err)
		}
		far.SetReadDeadline(time.Time{})
		go n.Heal()
		p := make([]byte, 9)
		if k, err := far.Read(p); err != nil || string(p[:k]) != "held" {
			t.Fatalf("after healing: %q %v", p[:k], err)
		}
	})
}

func TestFullBufferBlocksUntilDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := connect(t, New(1))
		near.SetWriteDeadline(time.Now().Add(time.Second))
		k, err := near.Write(make([]byte, Buffer+1))
		if k != Buffer || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d, %v", k, err)
		}
	})
}

func TestSilentSwallows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		near, far := connect(t, n)
		n.SetLink("10.0.0.1", "10.0.0.2", Link{Silent: true})
		for range 100 {
			if _, err := near.Write(make([]byte, Buffer)); err != nil {
				t.Fatal(err)
			}
		}
		n.Heal()
		near.Write([]byte("x"))
		p := make([]byte, 9)
		if k, err := far.Read(p); k != 1 || p[0] != 'x' || err != nil {
			t.Fatalf("read %d bytes, %v", k, err)
		}
	})
}

func TestResetAfter(t *testing.T) {
	n := New(1)
	near, far := connect(t, n)
	n.SetLink("10.0.0.1", "10.0.0.2", Link{ResetAfter: 10})
	if k, err := near.Write(make([]byte, 25)); k != 10 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("wrote %d, %v", k, err)
	}
	if b, err := io.ReadAll(far); len(b) != 10 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d, %v", len(b), err)
	}
	if _, err := far.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("other direction: %v", err)
	}
}

func flipped(a, b []byte) (n int) {
	for i := range a {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

func TestFlips(t *testing.T) {
	n := New(7)
	near, far := connect(t, n)
	n.SetAll(Link{FlipEvery: 1000})
	sent := bytes.Repeat([]byte{0x55}, 200_000)
	go func() { near.Write(sent); near.Close() }()
	got, err := io.ReadAll(far)
	if err != nil || len(got) != len(sent) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if f := flipped(sent, got); f < 100 || f > 400 {
		t.Errorf("%d bits flipped in 200000 bytes at one per 1000", f)
	}
}

// The same faults on a real connection.
func TestWrap(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := NewFaults(3)
	f.SetWrite(Link{FlipAt: 5})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near := f.Wrap(c)
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	sent := make([]byte, 9)
	if _, err := near.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 9)
	if _, err := io.ReadFull(far, got); err != nil || flipped(sent, got) != 1 || got[4] == 0 {
		t.Fatalf("% x %v, want one flip in byte 5", got, err)
	}

	f.SetRead(Link{Hold: true})
	far.Write([]byte("later"))
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 9)
		if k, err := near.Read(p); err != nil || string(p[:k]) != "later" {
			t.Errorf("after holding: %q %v", p[:k], err)
		}
	})
	f.SetRead(Link{})
	wg.Wait()

	f.SetWrite(Link{ResetAfter: 12})
	if k, err := near.Write(make([]byte, 9)); k != 3 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("wrote %d, %v", k, err)
	}
	f.SetRead(Link{Hold: true})
	wg.Go(func() { near.Read(make([]byte, 1)) }) // must end with Close
	near.Close()
	wg.Wait()
}

func TestPackets(t *testing.T) {
	n := New(5)
	a, err := n.Host("10.0.0.1").ListenPacket("udp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := n.Host("10.0.0.2").ListenPacket("udp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Host("10.0.0.2").ListenPacket("udp", ":7777"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("second listener: %v", err)
	}
	n.SetAll(Link{Loss: 0.5})
	for range 500 {
		a.WriteTo([]byte("hi"), b.LocalAddr())
	}
	b.Close()
	pc := b.(*packetConn)
	if k := len(pc.queue); k < 150 || k > 350 {
		t.Errorf("%d of 500 packets arrived with loss 0.5", k)
	}
	if m := <-pc.queue; string(m.data) != "hi" || m.from.String() != "10.0.0.1:7777" {
		t.Errorf("got %q from %v", m.data, m.from)
	}
}

// A dead host: its streams break, nobody gets in, it gets nowhere; its successor at the same
// address works.
func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		h, other := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		l, err := h.Listen("tcp", "10.0.0.1:7778")
		if err != nil {
			t.Fatal(err)
		}
		near, err := other.Dial(t.Context(), "tcp", "10.0.0.1:7778")
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		n.Cut([]string{"10.0.0.1"}, []string{"10.0.0.2"})
		held := make(chan error)
		go func() {
			_, err := h.Dial(t.Context(), "tcp", "10.0.0.2:1")
			held <- err
		}()
		synctest.Wait()
		h.Down()
		h.Down() // again does nothing
		for _, c := range []net.Conn{near, far} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read on a stream of a dead host: %v", err)
			}
			c.Close()
		}
		if err := <-held; !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("the dial that was under way: %v", err)
		}
		n.Heal()
		if _, err := l.Accept(); err == nil {
			t.Error("its listener still accepts")
		}
		if _, err := other.Dial(t.Context(), "tcp", "10.0.0.1:7778"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial to it: %v", err)
		}
		if _, err := h.Listen("tcp", "10.0.0.1:7778"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("listen on it: %v", err)
		}
		if _, err := h.ListenPacket("udp", "10.0.0.1:7778"); !errors.Is(err, syscall.ENETDOWN) {
			t.Errorf("listen on it for packets: %v", err)
		}
		again, err := n.Host("10.0.0.1").Listen("tcp", "10.0.0.1:7778")
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
	})
}
