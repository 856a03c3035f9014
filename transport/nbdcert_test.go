package transport

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func nbdAuthority(t testing.TB, b byte) *NBDAuthority {
	t.Helper()
	a, err := NewNBDAuthority(testSecret(b))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// nbdClientTLS is a client with the files of dir.
func nbdClientTLS(t testing.TB, dir, server string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, NBDCertFile), filepath.Join(dir, NBDKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, NBDCAFile))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		t.Fatal("no authority")
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, ServerName: server}
}

// meet lets a client and a server shake hands, and returns both errors.
func meet(t testing.TB, client, server *tls.Config) (clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer nc.Close()
		c := tls.Server(nc, server)
		if err = c.Handshake(); err == nil {
			_, err = c.Write([]byte{1})
		}
		done <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	return err, <-done
}

func TestNBDCertificates(t *testing.T) {
	dir := t.TempDir()
	// Another node with the same secret vouches for the same clients.
	if err := nbdAuthority(t, 1).WriteClient(dir, "vm-host"); err != nil {
		t.Fatal(err)
	}
	server := nbdAuthority(t, 1).ServerTLS("hosta", "localhost")
	for _, name := range []string{"hosta", "localhost", "127.0.0.1"} {
		if ce, se := meet(t, nbdClientTLS(t, dir, name), server); ce != nil || se != nil {
			t.Errorf("%s: %v, %v", name, ce, se)
		}
	}
	if ce, _ := meet(t, nbdClientTLS(t, dir, "hostb"), server); ce == nil {
		t.Error("the server passes for another")
	}
	if ce, se := meet(t, nbdClientTLS(t, dir, "hosta"), nbdAuthority(t, 2).ServerTLS("hosta")); ce == nil || se == nil {
		t.Errorf("another secret: %v, %v", ce, se)
	}
	anonymous := nbdClientTLS(t, dir, "hosta")
	anonymous.Certificates = nil
	if _, se := meet(t, anonymous, server); se == nil {
		t.Error("a client without a certificate was admitted")
	}
	for _, f := range []string{NBDCAFile, NBDCertFile, NBDKeyFile} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st, err)
		}
	}
	if err := nbdAuthority(t, 1).WriteClient(dir, "vm-host"); err == nil {
		t.Error("an existing key was replaced")
	}
}

// TestNBDClientIsNoNode: what a client is given does not open the port between nodes, and a node's
// certificate, which proves membership, is not taken for a client's.
func TestNBDClientIsNoNode(t *testing.T) {
	dir := t.TempDir()
	secret := testSecret(1)
	if err := nbdAuthority(t, 1).WriteClient(dir, "hostb"); err != nil {
		t.Fatal(err)
	}
	a := testIdentity(t, secret, "hosta")
	client := nbdClientTLS(t, dir, "hosta")
	client.InsecureSkipVerify = true // it would not trust the node; does the node trust it?
	client.NextProtos = []string{"http/1.1"}
	if _, se := meet(t, client, a.ServerTLS()); se == nil {
		t.Fatal("a client of the devices was admitted as a node")
	}
	node := testIdentity(t, secret, "hostb").ClientTLS("hosta")
	node.VerifyConnection, node.NextProtos = nil, nil
	if _, se := meet(t, node, nbdAuthority(t, 1).ServerTLS("hosta")); se == nil {
		t.Error("a node was admitted as a client")
	}
}

func TestLoadNBDServerTLS(t *testing.T) {
	dir := t.TempDir()
	if err := nbdAuthority(t, 1).WriteClient(dir, "x"); err != nil {
		t.Fatal(err)
	}
	cert, key, ca := filepath.Join(dir, NBDCertFile), filepath.Join(dir, NBDKeyFile), filepath.Join(dir, NBDCAFile)
	cfg, err := LoadNBDServerTLS(cert, key, ca)
	if err != nil || len(cfg.Certificates) != 1 || cfg.ClientAuth != tls.RequireAndVerifyClientCert || cfg.ClientCAs == nil {
		t.Fatalf("%+v %v", cfg, err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, pem.EncodeToMemory(&pem.Block{Type: "NOTHING"}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ cert, key, ca, want string }{
		{"nix", key, ca, "nix"}, {cert, "nix", ca, "nix"}, {cert, key, "nix", "nix"}, {ca, key, ca, "server certificate"}, {cert, key, empty, "no certificate"},
	} {
		if _, err := LoadNBDServerTLS(tc.cert, tc.key, tc.ca); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if _, err := NewNBDAuthority(nil); err == nil {
		t.Error("no secret")
	}
}
