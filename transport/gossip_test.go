package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mars/internal/faultnet"
	"mars/internal/testutil"
)

const testUUID = "4c1f9a52-0000-4000-8000-000000000001"

// gossipNode is one node of a gossiping cluster in a test.
type gossipNode struct {
	*Gossip
	mu     sync.Mutex
	own    Hint
	hints  map[string]Hint
	events []string
	log    logText
}

func (n *gossipNode) hint(node string) Hint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hints[node]
}

func (n *gossipNode) tell(h Hint) {
	n.mu.Lock()
	n.own = h
	n.mu.Unlock()
	n.Broadcast()
}

// sees says whether exactly the named nodes are alive for n.
func (n *gossipNode) sees(names ...string) bool {
	alive := 0
	for _, a := range n.Alive() {
		if a {
			alive++
		}
	}
	for _, name := range names {
		if name != n.cfg.Node && !n.Alive()[name] {
			return false
		}
		if name == n.cfg.Node {
			alive++
		}
	}
	return alive == len(names)
}

func startGossip(t *testing.T, cfg GossipConfig) *gossipNode {
	t.Helper()
	n := &gossipNode{hints: map[string]Hint{}}
	if cfg.Label == "" {
		cfg.Label = testUUID
	}
	cfg.Log = n.log.logger(slog.LevelWarn)
	cfg.Node = cfg.Identity.Node()
	cfg.Hint = func() Hint { n.mu.Lock(); defer n.mu.Unlock(); return n.own }
	cfg.OnHint = func(node string, h Hint) { n.mu.Lock(); defer n.mu.Unlock(); n.hints[node] = h }
	cfg.OnMember = func(node string, alive bool) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.events = append(n.events, fmt.Sprint(node, alive))
	}
	g, err := NewGossip(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Gossip = g
	return n
}

// simulated is a node at 10.0.0.IP:7777 of a network in memory.
func simulated(t *testing.T, net *faultnet.Network, name string, ip int, peers ...string) *gossipNode {
	h := net.Host(fmt.Sprintf("10.0.0.%d", ip))
	return startGossip(t, GossipConfig{
		Identity: testIdentity(t, testSecret(1), name), BindAddr: fmt.Sprintf("10.0.0.%d", ip), BindPort: 7777,
		Peers:   func() []string { return peers },
		Network: Network{Listen: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial},
	})
}

// until waits in virtual time and returns how long it took.
func until(t *testing.T, limit time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for !cond() {
		if time.Since(begin) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return time.Since(begin)
}

// A partition far longer than memberlist remembers dead nodes heals by itself.
// The negative control shows that it is the rejoin loop that does it.
func TestGossipPartitionHeals(t *testing.T) {
	for _, rejoin := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			network := faultnet.New(11)
			network.SetAll(faultnet.Link{Delay: 5 * time.Millisecond})
			names := []string{"a", "b", "c", "d", "e"}
			var peers, ips []string
			for i, name := range names {
				ips = append(ips, fmt.Sprintf("10.0.0.%d", i+1))
				peers = append(peers, name+"/"+ips[i]+":7777")
			}
			var nodes []*gossipNode
			for i, name := range names {
				list := peers
				if !rejoin {
					list = nil
				}
				n := simulated(t, network, name, i+1, list...)
				if !rejoin && i > 0 {
					n.ml.Join([]string{"10.0.0.1:7777"})
				}
				nodes = append(nodes, n)
			}
			all := func() bool {
				for _, n := range nodes {
					if !n.sees(names...) {
						return false
					}
				}
				return true
			}
			split := func() bool {
				for i, n := range nodes {
					if i < 2 && !n.sees(names[:2]...) || i >= 2 && !n.sees(names[2:]...) {
						return false
					}
				}
				return true
			}
			until(t, time.Minute, "all see all", all)
			network.Cut(ips[:2], ips[2:])
			until(t, 2*time.Minute, "two halves", split)
			time.Sleep(5 * time.Minute)
			nodes[0].tell(Hint{Epoch: 1, Seq: 99}) // news that one half misses
			if !split() {
				t.Error("the halves met through a cut")
			}
			network.Heal()
			network.SetAll(faultnet.Link{Delay: 5 * time.Millisecond})
			if !rejoin {
				time.Sleep(5 * time.Minute)
				if !split() {
					t.Error("negative control: memberlist healed without help, so this test shows nothing")
				}
			} else {
				// Backoff reaches 6 x 10 s, plus a quarter.
				until(t, 90*time.Second, "all see all again", all)
				until(t, 30*time.Second, "the hint", func() bool { return nodes[4].hint("a").Seq == 99 })
			}
			closeAll(nodes...)
		})
	}
}

// closeAll ends the nodes of a bubble; memberlist's last probes take a while.
func closeAll(nodes ...*gossipNode) {
	for _, n := range nodes {
		n.Close()
	}
	time.Sleep(time.Minute)
}

func TestGossipPeersAbsentAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := faultnet.New(12)
		a := simulated(t, network, "a", 1, "10.0.0.1:7777", "10.0.0.2:7777", "c/10.0.0.3:7777")
		time.Sleep(time.Hour)
		if len(a.Alive()) != 0 {
			t.Error("somebody is alive who never was")
		}
		b := simulated(t, network, "b", 2) // b knows nobody: a finds it
		until(t, 90*time.Second, "a and b", func() bool { return a.sees("a", "b") && b.sees("a", "b") })
		if err := b.Leave(5 * time.Second); err != nil {
			t.Error(err)
		}
		until(t, 3*time.Second, "b has left", func() bool { return a.sees("a") })
		b.Close()
		b = simulated(t, network, "b", 2)
		until(t, 90*time.Second, "b is back", func() bool { return a.sees("a", "b") && b.sees("a", "b") })
		b.Close()
		until(t, time.Minute, "b has died", func() bool { return a.sees("a") })
		// The same node at another address.
		c := simulated(t, network, "b", 3, "a/10.0.0.1:7777")
		until(t, 3*time.Minute, "b has moved", func() bool { return a.sees("a", "b") && c.sees("a", "b") })
		closeAll(a, c)
		a.mu.Lock()
		defer a.mu.Unlock()
		if got := strings.Join(a.events, " "); got != "btrue bfalse btrue bfalse btrue" {
			t.Errorf("events: %s", got)
		}
	})
}

// The latest hint of each node reaches all others, whatever was lost before; a
// queue never holds more than one for each node; and a node that restarts with
// its clock far back is not ignored.
func TestGossipHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := faultnet.New(13)
		network.SetAll(faultnet.Link{Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond, Loss: 0.1})
		names := []string{"a", "b", "c", "d", "e"}
		var nodes []*gossipNode
		for i, name := range names {
			nodes = append(nodes, simulated(t, network, name, i+1, "a/10.0.0.1:7777"))
		}
		heard := func(from int, h Hint) func() bool {
			return func() bool {
				for i, n := range nodes {
					if i != from && n.hint(names[from]) != h {
						return false
					}
				}
				return true
			}
		}
		until(t, time.Minute, "members", func() bool {
			for _, n := range nodes {
				if !n.sees(names...) {
					return false
				}
			}
			return true
		})
		var last Hint
		for i := range 500 {
			last = Hint{Epoch: 7, Seq: uint64(i), Digest: [16]byte{byte(i)}}
			nodes[1].tell(last)
			time.Sleep(3 * time.Millisecond)
			if q := nodes[1].hints_().queue.NumQueued(); q > len(names) {
				t.Fatalf("%d hints are queued", q)
			}
		}
		if took := until(t, 35*time.Second, "the latest hint everywhere", heard(1, last)); took > 5*time.Second {
			t.Logf("the latest hint took %v", took)
		}

		nodes[1].Close()
		nodes[1] = simulated(t, network, "b", 2, "a/10.0.0.1:7777")
		nodes[1].hints_().mu.Lock()
		nodes[1].hints_().stamp = 1
		nodes[1].hints_().now = func() time.Time { return time.Unix(0, 0) } // an empty clock battery
		nodes[1].hints_().mu.Unlock()
		after := Hint{Epoch: 8, Seq: 1}
		nodes[1].tell(after)
		until(t, 3*time.Minute, "the hint of the restarted node", heard(1, after))
		closeAll(nodes...)
	})
}

func (n *gossipNode) hints_() *hintTable { return n.Gossip.hints }

// Strangers are kept out and named: another secret, another cluster, garbage.
func TestGossipStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := faultnet.New(14)
		a := simulated(t, network, "a", 1)
		host := func(ip string) Network {
			h := network.Host(ip)
			return Network{Listen: h.Listen, ListenPacket: h.ListenPacket, Dial: h.Dial}
		}
		toA := func() []string { return []string{"a/10.0.0.1:7777"} }
		thief := startGossip(t, GossipConfig{Identity: testIdentity(t, testSecret(2), "b"), BindAddr: "10.0.0.2", BindPort: 7777, Peers: toA, Network: host("10.0.0.2")})
		other := startGossip(t, GossipConfig{Identity: testIdentity(t, testSecret(1), "c"), BindAddr: "10.0.0.3", BindPort: 7777, Peers: toA, Network: host("10.0.0.3"), Label: "another-uuid"})
		h := network.Host("10.0.0.4")
		pc, err := h.ListenPacket("udp", ":9")
		if err != nil {
			t.Fatal(err)
		}
		to := net.UDPAddrFromAddrPort(a.net.advertise)
		for i := range 1000 {
			pc.WriteTo(randomBytes(uint64(i), 1+i%1400), to)
			if c, err := h.Dial(context.Background(), "tcp", "10.0.0.1:7777"); err == nil {
				c.Write(randomBytes(uint64(i), i))
				c.Close()
			}
			if i%100 == 0 {
				time.Sleep(time.Second)
			}
		}
		pc.Close()
		time.Sleep(5 * time.Minute)
		if !a.sees("a") {
			t.Errorf("a sees %v", a.Alive())
		}
		text := strings.Join(a.log.all(), "")
		for _, want := range []string{"does not hold the same cluster secret", "from=10.0.0.2", "another cluster", "from=10.0.0.3"} {
			if !strings.Contains(text, want) {
				t.Errorf("the log lacks %q:\n%s", want, text)
			}
		}
		if n := len(a.log.all()); n > 30 {
			t.Errorf("%d log lines for six minutes of nonsense:\n%s", n, text)
		}
		closeAll(a, thief, other)
	})
}

// Real sockets, with intervals of milliseconds: meet, notice a death, meet again.
func TestGossipRealSockets(t *testing.T) {
	start := func(name, ip string, port int, peers ...string) *gossipNode {
		return startGossip(t, GossipConfig{
			Identity: testIdentity(t, testSecret(1), name), BindAddr: ip, BindPort: port, Preset: PresetLocal,
			Peers: func() []string { return peers }, RejoinInterval: 20 * time.Millisecond,
			ProbeInterval: 20 * time.Millisecond, ProbeTimeout: 15 * time.Millisecond, GossipInterval: 5 * time.Millisecond,
			PushPullInterval: 100 * time.Millisecond, DeadTime: 100 * time.Millisecond, StreamTimeout: 200 * time.Millisecond,
			HintInterval: time.Millisecond,
		})
	}
	a := start("a", "127.0.0.1", 0)
	b := start("b", "127.0.0.2", 0, "a/"+a.Addr())
	c := start("c", "127.0.0.3", 0, a.Addr())
	testutil.WaitFor(t, 10*time.Second, "three members", func() bool {
		return a.sees("a", "b", "c") && b.sees("a", "b", "c") && c.sees("a", "b", "c")
	})
	b.tell(Hint{Epoch: 1, Seq: 2})
	testutil.WaitFor(t, 10*time.Second, "a hint", func() bool { return a.hint("b").Seq == 2 && c.hint("b").Seq == 2 })
	addr := b.Addr()
	b.Close()
	testutil.WaitFor(t, 10*time.Second, "a death", func() bool { return !a.Alive()["b"] && !c.Alive()["b"] })
	ap := strings.Split(addr, ":")
	var port int
	fmt.Sscan(ap[1], &port)
	b = start("b", ap[0], port, a.Addr())
	testutil.WaitFor(t, 10*time.Second, "a return", func() bool { return a.Alive()["b"] && c.Alive()["b"] })
	for _, n := range []*gossipNode{a, b, c} {
		n.Leave(time.Second)
		begin := time.Now()
		n.Close()
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("close took %v", took)
		}
		n.Leave(time.Second) // a second time, and after Close: no effect, no panic
		n.Close()
	}
}

func TestGossipConfig(t *testing.T) {
	id := testIdentity(t, testSecret(1), "a")
	good := GossipConfig{Identity: id, Node: "a", Label: testUUID, BindAddr: "127.0.0.1"}
	for name, c := range map[string]struct {
		change func(*GossipConfig)
		is     error
	}{
		"no uuid":           {func(c *GossipConfig) { c.Label = "" }, ErrNoUUID},
		"any uuid":          {func(c *GossipConfig) { c.Label = "(any)" }, ErrNoUUID},
		"no identity":       {func(c *GossipConfig) { c.Identity = nil }, nil},
		"other name":        {func(c *GossipConfig) { c.Node = "b" }, nil},
		"bad advertise":     {func(c *GossipConfig) { c.AdvertiseAddr = "nowhere" }, nil},
		"unusable address":  {func(c *GossipConfig) { c.BindAddr = "0.0.0.0" }, nil},
		"interval":          {func(c *GossipConfig) { c.RejoinInterval = 1 }, nil},
		"port":              {func(c *GossipConfig) { c.BindPort = 70000 }, nil},
		"address not local": {func(c *GossipConfig) { c.BindAddr = "192.0.2.1" }, nil},
	} {
		cfg := good
		c.change(&cfg)
		g, err := NewGossip(cfg)
		if err == nil {
			g.Close()
			t.Errorf("%s: accepted", name)
		} else if c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.BindAddr, good.AdvertiseAddr, good.AdvertisePort = "0.0.0.0", "127.0.0.7", 1234
	g, err := NewGossip(good)
	if err != nil {
		t.Fatal(err)
	}
	if g.Addr() != "127.0.0.7:1234" {
		t.Errorf("advertises %s", g.Addr())
	}
	g.Close()
}

func TestSplitAddr(t *testing.T) {
	for _, c := range []struct{ in, gossip, data string }{
		{"10.0.0.1", "10.0.0.1:7777", "10.0.0.1:7778"},
		{"10.0.0.1:9000", "10.0.0.1:9000", "10.0.0.1:9001"},
		{"host-a.example", "host-a.example:7777", "host-a.example:7778"},
		{"host-a:80", "host-a:80", "host-a:81"},
		{"fe80::1", "[fe80::1]:7777", "[fe80::1]:7778"},
		{"[fe80::1]", "[fe80::1]:7777", "[fe80::1]:7778"},
		{"[fe80::1]:5", "[fe80::1]:5", "[fe80::1]:6"},
		{in: ""}, {in: ":7777"}, {in: "a:b:c"}, {in: "a:0"}, {in: "a:65535"}, {in: "a:x"}, {in: "a b"}, {in: "a/b:1"},
	} {
		g, d, err := SplitAddr(c.in)
		if g != c.gossip || d != c.data || (err == nil) != (c.gossip != "") {
			t.Errorf("%q: %q %q %v", c.in, g, d, err)
		}
	}
}

func TestHintCodec(t *testing.T) {
	w := wireHint{hashNode(strings.Repeat("n", 63)), 1 << 60, Hint{Epoch: 1<<64 - 1, Seq: 2, Digest: [16]byte{3, 15: 4}}}
	b := w.append(nil)
	if len(b) > 64 || len(b) != hintSize {
		t.Errorf("a hint has %d bytes, at most 64 are allowed", len(b))
	}
	if got, err := decodeHint(b); err != nil || got != w {
		t.Errorf("%+v %v", got, err)
	}
	for i := range len(b) * 8 {
		bad := append([]byte(nil), b...)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := decodeHint(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	if list, err := decodeHints(append(b, b...)); err != nil || len(list) != 2 {
		t.Errorf("%v %v", list, err)
	}
	if _, err := decodeHints(b[1:]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

func FuzzHints(f *testing.F) {
	f.Add(wireHint{hashNode("a"), 5, Hint{Seq: 9}}.append(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		list, err := decodeHints(in)
		if err != nil {
			return
		}
		var again []byte
		for _, w := range list {
			again = w.append(again)
		}
		if string(again) != string(in) {
			t.Fatal("accepted hints that encode differently")
		}
	})
}
