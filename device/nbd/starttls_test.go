package nbd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/nbdclient"
	"mars/internal/nbdproto"
)

// pki is an authority with a server and, in dir, a client.
type pki struct {
	pool   *x509.CertPool
	server *tls.Config
	client tls.Certificate
	dir    string // in the form that foreign clients want
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{pool: x509.NewCertPool(), dir: t.TempDir()}
	cert := func(name string, usage x509.KeyUsage, parent *x509.Certificate, by ed25519.PrivateKey) (*x509.Certificate, ed25519.PrivateKey) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		check(t, err)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: usage,
			BasicConstraintsValid: true, IsCA: parent == nil, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if parent == nil {
			parent, by = c, key
		} else {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by)
		check(t, err)
		c, err = x509.ParseCertificate(der)
		check(t, err)
		return c, key
	}
	ca, caKey := cert("authority", x509.KeyUsageCertSign, nil, nil)
	leafUse := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	server, serverKey := cert("server", leafUse, ca, caKey)
	client, clientKey := cert("client", leafUse, ca, caKey)
	p.pool.AddCert(ca)
	p.client = tls.Certificate{Certificate: [][]byte{client.Raw}, PrivateKey: clientKey}
	p.server = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: p.pool,
	}
	key, err := x509.MarshalPKCS8PrivateKey(clientKey)
	check(t, err)
	for name, b := range map[string]*pem.Block{"ca-cert.pem": {Type: "CERTIFICATE", Bytes: ca.Raw},
		"client-cert.pem": {Type: "CERTIFICATE", Bytes: client.Raw}, "client-key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		check(t, os.WriteFile(filepath.Join(p.dir, name), pem.EncodeToMemory(b), 0o600))
	}
	return p
}

func (p *pki) clientTLS() *tls.Config {
	return &tls.Config{ServerName: "localhost", RootCAs: p.pool, Certificates: []tls.Certificate{p.client}}
}

// tlsServer serves one export "disk" in memory on TCP.
func tlsServer(t testing.TB, cfg Config, p *pki, require bool) (*testServer, *Memory, string) {
	ts, m := startServer(t, cfg), NewMemory(8<<20)
	check(t, ts.Add(Export{Name: "disk", Backend: m}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ts.listen(func() error { return ts.ServeTLS(l, p.server, require) })
	return ts, m, l.Addr().String()
}

func dialTCP(t testing.TB, addr string) *nbdclient.Raw {
	t.Helper()
	r, err := nbdclient.DialRaw(testContext(t), "tcp", addr)
	check(t, err)
	r.Conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { r.Close() })
	return ready(t, r)
}

// secure does STARTTLS.
func secure(t testing.TB, r *nbdclient.Raw, cfg *tls.Config) error {
	t.Helper()
	final(t, r, nbdproto.OptStartTLS, nil, nbdproto.RepAck)
	c := tls.Client(r.Conn, cfg)
	r.Conn = c
	return c.Handshake()
}

func TestStartTLS(t *testing.T) {
	p := newPKI(t)
	ts, m, addr := tlsServer(t, Config{}, p, true)
	r := dialTCP(t, addr)
	// Nothing but STARTTLS and ABORT before.
	for _, id := range []uint32{nbdproto.OptList, nbdproto.OptGo, nbdproto.OptInfo, nbdproto.OptStructuredReply, nbdproto.OptSetMetaContext, 4711} {
		final(t, r, id, nbdclient.InfoData("disk"), nbdproto.RepErrTLSReqd)
	}
	final(t, r, nbdproto.OptStartTLS, []byte{1}, nbdproto.RepErrInvalid)
	check(t, secure(t, r, p.clientTLS()))
	final(t, r, nbdproto.OptStartTLS, nil, nbdproto.RepErrInvalid)
	final(t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
	final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
	ts.waitOpen("disk", 1)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // larger than the receive buffer
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdWrite, nbdproto.CmdFlagFUA, 1, 4096, uint32(len(data))), data))
	reply(t, r, 1, 0)
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, 0, 2, 4096, uint32(len(data)))))
	if rep := reply(t, r, 2, 0); !bytes.Equal(rep.Payload[8:], data) {
		t.Error("wrong data")
	}
	got := make([]byte, len(data))
	check(t, m.ReadAt(got, 4096))
	if !bytes.Equal(got, data) {
		t.Error("wrong data on the device")
	}
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdDisc, 0, 3, 0, 0)))
	closed(t, r)
	ts.waitOpen("disk", 0)
}

// TestPlainIsRefused: the oldest way to choose an export has no other no.
func TestPlainIsRefused(t *testing.T) {
	ts, _, addr := tlsServer(t, Config{}, newPKI(t), true)
	r := dialTCP(t, addr)
	check(t, r.Option(nbdproto.OptExportName, []byte("disk")))
	closed(t, r)
	if ts.OpenCount("disk") != 0 {
		t.Error("open")
	}
	final(t, dialTCP(t, addr), nbdproto.OptAbort, nil, nbdproto.RepAck)
}

// TestTLSForgetsWhatWasAgreed: what came before could have been said by somebody in between.
func TestTLSForgetsWhatWasAgreed(t *testing.T) {
	p := newPKI(t)
	_, _, addr := tlsServer(t, Config{}, p, false)
	r := dialTCP(t, addr)
	final(t, r, nbdproto.OptStructuredReply, nil, nbdproto.RepAck)
	final(t, r, nbdproto.OptSetMetaContext, metaData("disk", nbdproto.ContextAllocation), nbdproto.RepAck)
	check(t, secure(t, r, p.clientTLS()))
	final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
	check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdBlockStatus, 0, 1, 0, 512)))
	if rep := reply(t, r, 1, nbdproto.EINVAL); rep.Structured {
		t.Error("structured replies outlive STARTTLS")
	}
	// On an address that does not require it, others go without.
	r = dialTCP(t, addr)
	final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
	inStep(t, r)
}

func TestTLSRefusesStrangers(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	ts, _, addr := tlsServer(t, Config{}, p, true)
	for name, edit := range map[string]func(*tls.Config){
		"no certificate": func(c *tls.Config) { c.Certificates = nil },
		"another authority": func(c *tls.Config) {
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other.client, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := p.clientTLS()
			edit(cfg)
			r := dialTCP(t, addr)
			if err := secure(t, r, cfg); err != nil {
				return // with TLS 1.3 the client learns of it only when it reads
			}
			r.Option(nbdproto.OptGo, nbdclient.InfoData("disk"))
			closed(t, r)
			if ts.OpenCount("disk") != 0 {
				t.Error("open")
			}
		})
	}
	t.Run("plain text in front of TLS", func(t *testing.T) {
		// What is pipelined behind STARTTLS must not be taken for protected.
		r := dialTCP(t, addr)
		check(t, r.Send(nbdproto.AppendOption(nil, nbdproto.OptStartTLS, nil), nbdproto.AppendOption(nil, nbdproto.OptGo, nbdclient.InfoData("disk"))))
		rep, err := r.OptionReply()
		if err != nil || rep.Type != nbdproto.RepAck {
			t.Fatal(rep, err)
		}
		for { // perhaps an alert, then the end
			var p [256]byte
			n, err := r.Conn.Read(p[:])
			if err != nil {
				break
			}
			if bytes.Contains(p[:n], []byte("\x00\x03\xe8\x89\x04\x55\x65\xa9")) {
				t.Fatal("an option sent in the clear was answered")
			}
		}
	})
}

// TestTLSClientsThatDie: in any state, and without reading.
func TestTLSClientsThatDie(t *testing.T) {
	p := newPKI(t)
	t.Run("silent in the middle of TLS", func(t *testing.T) {
		_, _, addr := tlsServer(t, Config{HandshakeTimeout: 300 * time.Millisecond}, p, true)
		r := dialTCP(t, addr)
		defer r.Close()
		final(t, r, nbdproto.OptStartTLS, nil, nbdproto.RepAck)
		closed(t, r)
	})
	ts, _, addr := tlsServer(t, Config{DrainTimeout: 50 * time.Millisecond}, p, true)
	for name, die := range map[string]func(t *testing.T, r *nbdclient.Raw){
		"gone after TLS": func(t *testing.T, r *nbdclient.Raw) { check(t, secure(t, r, p.clientTLS())) },
		"half a request": func(t *testing.T, r *nbdclient.Raw) {
			check(t, secure(t, r, p.clientTLS()))
			final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
			check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdWrite, 0, 1, 0, 4096)[:13]))
		},
		"never reads": func(t *testing.T, r *nbdclient.Raw) {
			check(t, secure(t, r, p.clientTLS()))
			final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
			for i := range 16 {
				check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, 0, uint64(i), 0, 4<<20)))
			}
			ts.waitOpen("disk", 1)
			// Another client goes on meanwhile.
			r2 := dialTCP(t, addr)
			check(t, secure(t, r2, p.clientTLS()))
			final(t, r2, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
			inStep(t, r2)
			r2.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := dialTCP(t, addr)
			die(t, r)
			if c, ok := r.Conn.(*tls.Conn); ok {
				c.NetConn().Close() // no good-bye
			}
			r.Close()
			ts.waitOpen("disk", 0)
		})
	}
	t.Run("removed under a client that never reads", func(t *testing.T) {
		r := dialTCP(t, addr)
		check(t, secure(t, r, p.clientTLS()))
		final(t, r, nbdproto.OptGo, nbdclient.InfoData("disk"), nbdproto.RepAck)
		for i := range 16 {
			check(t, r.Send(nbdclient.RequestHeader(nbdproto.CmdRead, 0, uint64(i), 0, 4<<20)))
		}
		ts.waitOpen("disk", 1)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		check(t, ts.Remove(ctx, "disk"))
	})
}

// TestForeignTLS: libnbd and qemu, which use GnuTLS.
func TestForeignTLS(t *testing.T) {
	p := newPKI(t)
	_, m, addr := tlsServer(t, Config{}, p, true)
	uri := fmt.Sprintf("nbds://%s/disk?tls-certificates=%s", addr, p.dir)
	name, data := imageFile(t, 8<<20)
	run(t, "nbdcopy", "--flush", name, uri)
	got := make([]byte, len(data))
	check(t, m.ReadAt(got, 0))
	if !bytes.Equal(got, data) {
		t.Error("nbdcopy wrote something else")
	}
	if out := run(t, "nbdinfo", uri); !strings.Contains(out, "with TLS") && !strings.Contains(out, "using TLS") {
		t.Errorf("nbdinfo: %s", out)
	}
	if out, err := tool(t, "nbdinfo", "nbd://"+addr+"/disk"); err == nil {
		t.Errorf("nbdinfo without TLS: %s", out)
	}
	host, port, _ := net.SplitHostPort(addr)
	run(t, "qemu-img", "compare", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+p.dir,
		"--image-opts", "driver=file,filename="+name, "driver=nbd,host="+host+",port="+port+",export=disk,tls-creds=tls0")
}
