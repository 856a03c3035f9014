package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const benchLog = 1 << 30

// repeated is a log of any length whose content is one block again and again.
type repeated struct{ block []byte }

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], r.block[(off+int64(n))%int64(len(r.block)):])
	}
	return len(p), nil
}
func (r repeated) Wait(context.Context, int64) (int64, bool, error) { return benchLog, true, nil }
func (r repeated) Close() error                                     { return nil }

type benchHandler struct {
	*fakeHandler
	src LogSource
}

func (h benchHandler) OpenLog(context.Context, string, string, string) (LogSource, error) {
	return h.src, nil
}

// ship transfers benchLog bytes by a log subscription.
func ship(b *testing.B, p *Peer) {
	n := int64(0)
	err := p.Log(b.Context(), "r", testLog, 0, func(_ int64, data []byte, _ int64, _ bool) error {
		n += int64(len(data))
		return nil
	})
	if err != nil || n != benchLog {
		b.Fatal(n, err)
	}
}

// plainCopy does the same without HTTP, frames and checksums, and without TLS if
// the configurations are nil.
func plainCopy(b *testing.B, src repeated, server, client *tls.Config) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		if server != nil {
			c = tls.Server(c, server)
		}
		buf := make([]byte, MaxFrame)
		for off := int64(0); off < benchLog; off += MaxFrame {
			src.ReadAt(buf, off)
			if _, err := c.Write(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if client != nil {
		c = tls.Client(c, client)
	}
	buf := make([]byte, MaxFrame)
	n := int64(0)
	for {
		m, err := io.ReadFull(c, buf)
		n += int64(m)
		if err != nil {
			break
		}
	}
	if n != benchLog {
		b.Fatal(n)
	}
	wg.Wait()
}

// BenchmarkShip reports log shipping beside plain copies of the same bytes by TCP
// and by TLS, alternating in one run, and their ratios.
func BenchmarkShip(b *testing.B) {
	src := repeated{randomBytes(1, 8<<20)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	cfg := Config{Log: discard()}
	ida, idb := testIdentity(b, testSecret(1), "hosta"), testIdentity(b, testSecret(1), "hostb")
	s := NewServer(ida, benchHandler{newFakeHandler(), src}, cfg)
	go s.Serve(l)
	defer s.Close()
	p := NewPeer(idb, "hosta", l.Addr().String(), cfg)
	defer p.Close()
	var bare, ours, plain, oursCPU, plainCPU time.Duration
	b.SetBytes(benchLog)
	for b.Loop() {
		begin, cpu := time.Now(), cpuTime(b)
		ship(b, p)
		ours, oursCPU = ours+time.Since(begin), oursCPU+cpuTime(b)-cpu
		b.StopTimer()
		begin, cpu = time.Now(), cpuTime(b)
		plainCopy(b, src, nil, nil)
		plain, plainCPU = plain+time.Since(begin), plainCPU+cpuTime(b)-cpu
		begin = time.Now()
		plainCopy(b, src, ida.ServerTLS(), idb.ClientTLS("hosta"))
		bare += time.Since(begin)
		b.StartTimer()
	}
	b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-plain-tcp")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "of-plain-tls")
	// Processor time, both sides, hardly depends on what else the machine does.
	b.ReportMetric(oursCPU.Seconds()/float64(b.N), "cpu-s/GiB")
	b.ReportMetric(plainCPU.Seconds()/float64(b.N), "plain-cpu-s/GiB")
	b.ReportMetric(float64(b.N)*benchLog/plain.Seconds()/1e6, "plain-MB/s")
}

func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLag is the time from a durable append of 4 KiB to its delivery at the
// subscriber, one at a time.
func BenchmarkLag(b *testing.B) {
	h := newFakeHandler()
	l := h.log(make([]byte, 0, 4096*100_000))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(testIdentity(b, testSecret(1), "hosta"), h, Config{Log: discard()})
	go s.Serve(ln)
	defer s.Close()
	p := NewPeer(testIdentity(b, testSecret(1), "hostb"), "hosta", ln.Addr().String(), Config{Log: discard()})
	defer p.Close()
	got := make(chan int64, 16)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Log(ctx, "r", testLog, 0, func(off int64, data []byte, _ int64, _ bool) error {
			got <- off + int64(len(data))
			return nil
		})
	}()
	<-got
	piece := make([]byte, 4096)
	for b.Loop() {
		var want int64
		l.change(func() { l.data = append(l.data, piece...); l.durable += 4096; want = l.durable })
		for <-got < want {
		}
	}
	cancel()
	<-done
}

// BenchmarkIdleStreams reports the memory of an idle subscription, both sides.
func BenchmarkIdleStreams(b *testing.B) {
	if _, err := os.Stat("/proc/self/statm"); err != nil {
		b.Skip(err)
	}
	h := newFakeHandler()
	l := h.log([]byte("abc"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(testIdentity(b, testSecret(1), "hosta"), h, Config{Log: discard()})
	go s.Serve(ln)
	defer s.Close()
	p := NewPeer(testIdentity(b, testSecret(1), "hostb"), "hosta", ln.Addr().String(), Config{Log: discard()})
	defer p.Close()
	const n = 500
	for i := range n {
		h.change(func() { h.logs[fmt.Sprintf("r/x%d", i)] = l })
	}
	for b.Loop() {
		before := residentKiB(b)
		ctx, cancel := context.WithCancel(b.Context())
		var ready, done sync.WaitGroup
		ready.Add(n)
		for i := range n {
			done.Go(func() {
				once := sync.OnceFunc(ready.Done)
				err := p.Log(ctx, "r", fmt.Sprintf("x%d", i), 0, func(int64, []byte, int64, bool) error { once(); return nil })
				if ctx.Err() == nil {
					b.Error(err)
					once()
				}
			})
		}
		ready.Wait()
		b.ReportMetric(float64(residentKiB(b)-before)/n, "KiB/stream")
		cancel()
		done.Wait()
	}
}

func residentKiB(b *testing.B) int {
	text, err := os.ReadFile(filepath.Join("/proc/self", "statm"))
	if err != nil {
		b.Fatal(err)
	}
	var size, pages int
	fmt.Sscan(string(text), &size, &pages)
	return pages * os.Getpagesize() / 1024
}
