package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mars/internal/testutil"
)

func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	s := NewSecret()
	if err := WriteSecret(path, s); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	got, err := LoadSecret(path)
	if err != nil || got.Hex() != s.Hex() {
		t.Fatalf("came back different: %v", err)
	}
	if err := WriteSecret(path, NewSecret()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second write: %v, want fs.ErrExist", err)
	}
	if got, _ := LoadSecret(path); got.Hex() != s.Hex() {
		t.Error("the second write changed the file")
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("temporary files are left: %v", list)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o644, 0o610} {
		os.Chmod(path, mode)
		if _, err := LoadSecret(path); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	os.Chmod(path, 0o400)
	if _, err := LoadSecret(path); err != nil {
		t.Errorf("mode 0400: %v", err)
	}
	if _, err := LoadSecret(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := LoadSecret(dir); err == nil {
		t.Error("a directory was accepted")
	}
}

func TestParseSecret(t *testing.T) {
	good := strings.Repeat("0aF9", 16)
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{good, true}, {" " + good + "\n", true}, {"", false}, {good[:62], false}, {good + "00", false}, {good[:63] + "x", false}, {good[:32] + "\n" + good[32:], false},
	} {
		s, err := ParseSecret(c.text)
		if (err == nil) != c.ok || c.ok && len(s) != SecretSize {
			t.Errorf("%q: %v", c.text, err)
		}
		if err != nil && len(c.text) > 10 && strings.Contains(err.Error(), c.text[:8]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	s := testSecret(3)
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s", s, s, s, s), slogText(s)} {
		if strings.Contains(text, s.Hex()[:16]) || strings.Contains(text, "3 4 5") || strings.Contains(text, "0x3, 0x4") {
			t.Errorf("a secret printed itself: %s", text)
		}
	}
}

func slogText(s Secret) string {
	var l logText
	l.logger(slog.LevelInfo).Info("x", "secret", s)
	return strings.Join(l.all(), "")
}

func TestCheckOutside(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "mars")
	os.Mkdir(root, 0o700)
	os.Symlink(root, filepath.Join(dir, "alias"))
	for _, c := range []struct {
		path string
		ok   bool
	}{
		{dir + "/secret", true}, {dir + "/mars-secret", true}, {root + "/../secret", true},
		{root + "/secret", false}, {root + "/a/b/secret", false}, {root, false}, {dir + "/alias/secret", false}, {dir + "/alias/x/../y/secret", false},
	} {
		if err := CheckOutside(root, c.path); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

// Computed with another implementation of HKDF (RFC 5869) and Ed25519 from the
// secret 00 01 02 .. 1f.
const (
	goldenGossipKey = "b87f379ce47691ad584cb40a600a928f2cbf1a63f848b8755393d1485a0e2cc7"
	goldenCAKey     = "a9ce4d285d48e12bb2aa047a8226b767dc9e726c463cb7bb8adc11bfa156c6f6"
)

// The derived keys are part of the format: a change locks old and new nodes out
// of each other.
func TestDerivedKeysStay(t *testing.T) {
	id := testIdentity(t, testSecret(0), "hosta")
	if got := hex.EncodeToString(id.GossipKey()); got != goldenGossipKey {
		t.Errorf("gossip key %s", got)
	}
	if got := hex.EncodeToString(id.ca.RawSubjectPublicKeyInfo[12:]); got != goldenCAKey {
		t.Errorf("authority key %s", got)
	}
	other := testIdentity(t, testSecret(0), "hostb")
	if string(other.ca.Raw) != string(id.ca.Raw) {
		t.Error("two nodes of a cluster have different authority certificates")
	}
}

func TestNodeKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "node.key")
	a, err := NewIdentity(testSecret(0), "hosta", path)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	b, err := NewIdentity(testSecret(0), "hosta", path)
	if err != nil {
		t.Fatal(err)
	}
	if string(a.cert.Leaf.RawSubjectPublicKeyInfo) != string(b.cert.Leaf.RawSubjectPublicKeyInfo) {
		t.Error("the node's key changed at the second start")
	}
	os.Chmod(path, 0o644)
	if _, err := NewIdentity(testSecret(0), "hosta", path); err == nil || !strings.Contains(err.Error(), "mode 0644") {
		t.Errorf("readable key: %v", err)
	}
	os.Chmod(path, 0o600)
	for _, text := range []string{"", "garbage", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		os.WriteFile(path, []byte(text), 0o600)
		if _, err := NewIdentity(testSecret(0), "hosta", path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("key file %q: %v", text, err)
		}
	}
	for _, name := range []string{"", "a/b", "a.b", "-a", "a b", strings.Repeat("x", 64), "ä"} {
		if _, err := NewIdentity(testSecret(0), name, filepath.Join(dir, "other.key")); err == nil {
			t.Errorf("node name %q was accepted", name)
		}
	}
	if _, err := NewIdentity(testSecret(0)[:31], "a", filepath.Join(dir, "other.key")); err == nil {
		t.Error("a short secret was accepted")
	}
}

// connectAs tries a hello with other credentials or for another name, and
// returns the error and what the server logged.
func connectAs(t *testing.T, secret Secret, me, want string) ([]string, error) {
	t.Helper()
	var lines logText
	cfg := testConfig()
	cfg.Log = lines.logger(slog.LevelWarn)
	w := newRealWorld(t, cfg)
	p := NewPeer(testIdentity(t, secret, me), want, w.peer.Addr(), testConfig())
	defer p.Close()
	_, err := p.Hello(t.Context(), Hello{Node: me})
	if err != nil {
		testutil.WaitFor(t, 5*time.Second, "a line in the server's log", func() bool { return len(lines.all()) > 0 })
	}
	return lines.all(), err
}

func TestWhoIsAdmitted(t *testing.T) {
	for _, c := range []struct {
		name     string
		secret   Secret
		me, want string
		is       error
		text     []string // in the client's error
		log      []string // in the server's log
	}{
		{name: "member", secret: testSecret(1), me: "hostc", want: "hosta"},
		{name: "odd names", secret: testSecret(1), me: "X-_9-", want: "hosta"},
		{
			name: "wrong secret", secret: testSecret(2), me: "hostc", want: "hosta", is: ErrSecret,
			text: []string{"node hosta does not hold the same cluster secret", "secret files"},
			log:  []string{"node hostc does not hold the same cluster secret", "remote=127.0.0.1"},
		},
		{
			name: "wrong name", secret: testSecret(1), me: "hostc", want: "hostx", is: ErrWrongNode,
			text: []string{"want hostx, found hosta", "ips/ip-hostx"},
			log:  []string{"node hostc looks for node hostx here"},
		},
		{
			name: "wrong case", secret: testSecret(1), me: "hostc", want: "HOSTA", is: ErrWrongNode,
			text: []string{"want HOSTA, found hosta"},
		},
		{
			name: "wrong secret and name", secret: testSecret(2), me: "hostc", want: "hostx", is: ErrSecret,
			text: []string{"node hostx does not hold"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines, err := connectAs(t, c.secret, c.me, c.want)
			if !errors.Is(err, c.is) || (err == nil) != (c.is == nil) {
				t.Fatalf("%v, want %v", err, c.is)
			}
			for _, s := range c.text {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("client's error lacks %q: %v", s, err)
				}
			}
			for _, s := range c.log {
				if !strings.Contains(strings.Join(lines, ""), s) {
					t.Errorf("server's log lacks %q: %q", s, lines)
				}
			}
		})
	}
}

// An impostor who does not check the server (as one without our code would)
// is found out by the server itself.
func TestServerChecksTheClient(t *testing.T) {
	var lines logText
	cfg := testConfig()
	cfg.Log = lines.logger(slog.LevelWarn)
	w := newRealWorld(t, cfg)
	evil := testIdentity(t, testSecret(9), "hostb").ClientTLS("hosta")
	evil.VerifyConnection = nil
	for name, conf := range map[string]*tls.Config{
		"foreign certificate": evil,
		"no certificate":      {InsecureSkipVerify: true},
		"old TLS":             {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
	} {
		c, err := tls.Dial("tcp", w.peer.Addr(), conf)
		if err == nil {
			// In TLS 1.3 the client is done before the server has looked at it.
			c.SetDeadline(time.Now().Add(5 * time.Second))
			fmt.Fprintf(c, "GET /v1/ HTTP/1.1\r\nHost: hosta\r\n\r\n")
			buf := make([]byte, 100)
			n, rerr := c.Read(buf)
			if rerr == nil {
				t.Errorf("%s: got an answer: %q", name, buf[:n])
			}
			c.Close()
		}
	}
	testutil.WaitFor(t, 5*time.Second, "the refusal in the log", func() bool {
		return strings.Contains(strings.Join(lines.all(), ""), "node hostb does not hold the same cluster secret")
	})
}

// The same refusal, seen by an honest client whose server does not accept it.
func TestServerRefusesLate(t *testing.T) {
	w := newRealWorld(t, testConfig())
	id := testIdentity(t, testSecret(9), "hostb")
	p := NewPeer(id, "hosta", w.peer.Addr(), testConfig())
	defer p.Close()
	p.tls.VerifyConnection = nil
	if err := p.Nudge(context.Background()); !errors.Is(err, ErrSecret) {
		t.Errorf("%v, want ErrSecret", err)
	}
}

// Any TLS client with the exported files gets in, as docs/WIRE-PROTOCOL.md says
// of curl: the certificates satisfy the standard checks too.
func TestExportedFiles(t *testing.T) {
	dir := t.TempDir()
	id, err := NewIdentity(testSecret(1), "hostb", filepath.Join(dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := id.WritePEM(dir); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	w := newRealWorld(t, testConfig())
	for name, ok := range map[string]bool{"hosta": true, "hostx": false} {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: name,
		}}}
		resp, err := client.Get("https://" + w.peer.Addr() + "/v1/")
		if (err == nil) != ok {
			t.Errorf("as %s: %v", name, err)
		}
		if err == nil {
			var who struct {
				Node string `json:"node"`
				You  string `json:"you_are"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&who); err != nil || who.Node != "hosta" || who.You != "hostb" {
				t.Errorf("answer %+v, %v", who, err)
			}
			resp.Body.Close()
		}
	}
}

func TestCertificateOutlivesClocks(t *testing.T) {
	id := testIdentity(t, testSecret(1), "hosta")
	leaf := id.cert.Leaf
	if leaf.NotBefore.Year() > 1970 || leaf.NotAfter.Year() < 9999 || id.ca.NotBefore.Year() > 1970 || id.ca.NotAfter.Year() < 9999 {
		t.Errorf("valid from %v to %v, authority %v to %v", leaf.NotBefore, leaf.NotAfter, id.ca.NotBefore, id.ca.NotAfter)
	}
	// synctest's clock stands in the year 2000; the tests there use it as well.
	if id.ServerTLS().Time().IsZero() || !id.ServerTLS().Time().Equal(verifyTime) {
		t.Error("certificates are checked against the real clock")
	}
}
