package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

// scriptConn is a client whose every byte is known in advance, delivered in pieces.
type scriptConn struct {
	in    *bytes.Reader
	piece int
	out   bytes.Buffer // written by one writer at a time; read after the end
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if c.piece > 0 && len(p) > c.piece {
		p = p[:c.piece]
	}
	return c.in.Read(p)
}

func (c *scriptConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scriptConn) Close() error                     { return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

const fuzzSize = 1 << 20

// play runs one connection against a fresh device, and returns the device and what the server sent.
func play(t testing.TB, script []byte, piece int) (*Memory, []byte) {
	m := NewMemory(fuzzSize)
	s := NewServer(Config{Log: slog.New(slog.DiscardHandler), ReceiveBuffer: 8192})
	check(t, s.Add(Export{Name: "disk", Backend: m}))
	sc := &scriptConn{in: bytes.NewReader(script), piece: piece}
	newConn(s, sc, &door{}, 1).run()
	if s.OpenCount("disk") != 0 || s.InFlight("disk") != 0 {
		t.Errorf("%d open, %d in flight after the end", s.OpenCount("disk"), s.InFlight("disk"))
	}
	check(t, s.Close())
	return m, sc.out.Bytes()
}

func FuzzHandshake(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	opt := nbdproto.AppendOption
	f.Add(flags, uint8(0))
	f.Add(opt(flags, nbdproto.OptGo, nbdclient.InfoData("disk", 1, 2, 3)), uint8(1))
	f.Add(opt(opt(flags, nbdproto.OptList, nil), nbdproto.OptAbort, nil), uint8(7))
	f.Add(opt(opt(flags, nbdproto.OptStructuredReply, nil), nbdproto.OptInfo, nbdclient.InfoData("")), uint8(0))
	f.Add(opt([]byte{0, 0, 0, 1}, nbdproto.OptExportName, []byte("disk")), uint8(3))
	f.Add(opt(flags, 77, make([]byte, 9000)), uint8(0))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(0))
	f.Fuzz(func(t *testing.T, script []byte, piece uint8) {
		_, out := play(t, script, int(piece))
		if len(out) < nbdproto.GreetingSize {
			t.Fatalf("only %d bytes sent", len(out))
		}
		// What follows the greeting is a sequence of well-formed option replies,
		// or the answer to EXPORT_NAME, or replies to requests.
		out = out[nbdproto.GreetingSize:]
		for len(out) >= nbdproto.OptReplySize {
			h := nbdproto.OptReplyHeader(out)
			if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY {
				break
			}
			if int(h.Length) > len(out)-nbdproto.OptReplySize || h.Length > maxOption {
				t.Fatalf("option reply of %d bytes, %d are there", h.Length, len(out)-nbdproto.OptReplySize)
			}
			out = out[nbdproto.OptReplySize+int(h.Length):]
		}
	})
}

// answer is what one request must be answered with.
type answer struct {
	errno uint32
	data  int // bytes
}

// expect reads a stream of requests more slowly and simply than the server, and says what must come of it. It
// numbers the requests, by writing 0, 1, 2... into their handles.
func expect(stream []byte) (answers []answer, image []byte) {
	image = make([]byte, fuzzSize)
	for len(stream) >= 28 && binary.BigEndian.Uint32(stream) == 0x25609513 {
		flags, cmd := binary.BigEndian.Uint16(stream[4:]), binary.BigEndian.Uint16(stream[6:])
		off, n := binary.BigEndian.Uint64(stream[16:]), uint64(binary.BigEndian.Uint32(stream[24:]))
		header := stream
		stream = stream[28:]
		var data []byte
		if cmd == 1 {
			if n > 32<<20 || n > uint64(len(stream)) {
				break
			}
			data, stream = stream[:n], stream[n:]
		}
		mask, known := map[uint16]uint16{0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 19}[cmd]
		inside := off <= fuzzSize && n <= fuzzSize-off
		var a answer
		switch {
		case !known || flags&^mask != 0, cmd == 3 && (off != 0 || n != 0), (cmd == 0 || cmd == 4 || cmd == 5) && !inside:
			a.errno = 22
		case (cmd == 1 || cmd == 6) && !inside:
			a.errno = 28
		case cmd == 0:
			a.data = int(n)
		case cmd == 1:
			copy(image[off:], data)
		case cmd == 4, cmd == 6:
			clear(image[off : off+n])
		case cmd == 2:
			return answers, image
		}
		binary.BigEndian.PutUint64(header[8:], uint64(len(answers)))
		answers = append(answers, a)
	}
	return answers, image
}

func FuzzTransmission(f *testing.F) {
	req := nbdclient.RequestHeader
	f.Add(append(req(1, 0, 1, 4096, 4), "data"...), uint8(0))
	f.Add(append(append(req(1, 1, 1, 0, 16), "0123456789abcdef"...), req(0, 0, 2, 0, 16)...), uint8(5))
	f.Add(append(append(req(1, 0, 1, 1<<20, 16), "0123456789abcdef"...), req(3, 0, 2, 0, 0)...), uint8(0))
	f.Add(append(append(req(1, 0, 1, 100, 9000), make([]byte, 9000)...), req(4, 0, 2, 50, 1000)...), uint8(200))
	f.Add(append(append(req(1, 8, 1, 100, 9000), make([]byte, 9000)...), req(6, 2, 2, 50, 100000)...), uint8(0))
	f.Add(append(req(7, 0, 1, 0, 4096), req(2, 0, 2, 0, 0)...), uint8(0))
	f.Add(req(1, 0, 1, 0, 0xffffffff), uint8(0))
	f.Add(req(0, 0, 1, 0, 300_000), uint8(1))
	hello := nbdproto.AppendOption([]byte{0, 0, 0, 3}, nbdproto.OptGo, nbdclient.InfoData("disk"))
	_, greeting := play(f, hello, 0)
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		stream = bytes.Clone(stream)
		answers, image := expect(stream)
		total := 0
		for _, a := range answers {
			total += a.data
		}
		if total > 16<<20 {
			t.Skip("too much to read")
		}
		m, out := play(t, append(bytes.Clone(hello), stream...), int(piece))
		rd := bytes.NewReader(out[len(greeting):])
		seen := make([]bool, len(answers))
		for rd.Len() > 0 {
			var p [16]byte
			if _, err := io.ReadFull(rd, p[:]); err != nil || binary.BigEndian.Uint32(p[:]) != 0x67446698 {
				t.Fatalf("malformed reply % x, %v", p, err)
			}
			errno, handle := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint64(p[8:])
			if handle >= uint64(len(answers)) || seen[handle] || answers[handle].errno != errno {
				t.Fatalf("reply to %d with errno %d; want %+v", handle, errno, answers)
			}
			seen[handle] = true
			if _, err := io.CopyN(io.Discard, rd, int64(answers[handle].data)); err != nil {
				t.Fatalf("data of reply to %d: %v", handle, err)
			}
		}
		for handle := range seen {
			if !seen[handle] {
				t.Fatalf("no reply to %d", handle)
			}
		}
		got := make([]byte, fuzzSize)
		check(t, m.ReadAt(got, 0))
		if !bytes.Equal(got, image) {
			t.Fatal("device differs from the model")
		}
	})
}
