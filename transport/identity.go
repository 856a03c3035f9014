package transport

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The labels of the keys derived from the secret. A change makes a new cluster.
const (
	infoGossip = "mars gossip key v1"
	infoCA     = "mars certificate authority v1"
)

// alpnNode prefixes a pseudo protocol name in which a client tells its node
// name before it is authenticated, only so that the server's complaint about a
// wrong secret can name it.
const alpnNode = "mars-node/"

// Certificates are valid from 1970 to 9999 and checked against a fixed moment:
// a node with a dead clock battery must still be able to talk to its peers.
// Nobody is kept out by time; a node is kept out by changing the secret.
var (
	notBefore  = time.Unix(0, 0).UTC()
	notAfter   = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	verifyTime = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Identity is what a node is to its peers: a name, vouched for by the cluster
// secret, with a key of its own.
type Identity struct {
	node   string
	gossip []byte
	ca     *x509.Certificate
	roots  *x509.CertPool
	cert   tls.Certificate
}

// NewIdentity derives the cluster's keys from secret and loads the node's own
// key from keyFile (PKCS #8 PEM, mode 0600), which it creates on first use.
func NewIdentity(secret Secret, node, keyFile string) (*Identity, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("identity of %s: cluster secret has %d bytes, want %d", node, len(secret), SecretSize)
	}
	if err := checkName("node name", node); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	key, err := loadNodeKey(keyFile)
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w", node, err)
	}
	gossip, err := hkdf.Key(sha256.New, secret, nil, infoGossip, 32)
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w", node, err)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, infoCA, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("identity of %s: %w", node, err)
	}
	id := &Identity{node: node, gossip: gossip}
	if err := id.certify(ed25519.NewKeyFromSeed(seed), key); err != nil {
		return nil, fmt.Errorf("identity of %s: %w", node, err)
	}
	return id, nil
}

// authorityCert makes the certificate of an authority and the pool that holds it alone. It is the same
// on all nodes: Ed25519 signatures are deterministic.
func authorityCert(name string, key ed25519.PrivateKey) (*x509.Certificate, *x509.CertPool, error) {
	tmpl := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return ca, roots, nil
}

// certify makes the authority's certificate and the node's own.
func (id *Identity) certify(authority, key ed25519.PrivateKey) error {
	var err error
	if id.ca, id.roots, err = authorityCert("MARS cluster", authority); err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(2)),
		Subject:               pkix.Name{CommonName: id.node},
		DNSNames:              []string{id.node}, // for curl and other clients that check host names
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, id.ca, key.Public(), authority)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	id.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: crypto.Signer(key), Leaf: leaf}
	return nil
}

// Node is the name this identity proves.
func (id *Identity) Node() string { return id.node }

// GossipKey is the AES-256 key of the gossip link.
func (id *Identity) GossipKey() []byte { return bytes.Clone(id.gossip) }

// WritePEM writes ca.pem and node.pem (certificates, no key) into dir, for curl:
// see docs/WIRE-PROTOCOL.md.
func (id *Identity) WritePEM(dir string) error {
	for name, der := range map[string][]byte{"ca.pem": id.ca.Raw, "node.pem": id.cert.Certificate[0]} {
		b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// ServerTLS admits every node that holds the cluster secret. The node's name is
// the common name of the verified certificate (PeerName).
func (id *Identity) ServerTLS() *tls.Config {
	c := id.baseTLS()
	// Chain and name are checked in VerifyConnection, for both directions alike.
	c.ClientAuth = tls.RequireAnyClientCert
	c.ClientCAs = id.roots
	c.NextProtos = []string{"http/1.1"}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := id.verify(cs)
		return err
	}
	return c
}

// ClientTLS connects to the node named peer and to no other. The standard check
// is replaced, not left out: VerifyConnection checks the chain first and then
// the exact name, so that a wrong secret and a wrong node are different errors,
// and host names differing in case are different nodes.
func (id *Identity) ClientTLS(peer string) *tls.Config {
	c := id.baseTLS()
	c.RootCAs = id.roots
	c.ServerName = peer
	c.NextProtos = []string{"http/1.1", alpnNode + id.node}
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		name, err := id.verify(cs)
		if err != nil {
			return fmt.Errorf("node %s %w", peer, err)
		}
		if name != peer {
			return fmt.Errorf("%w: want %s, found %s; check the ips/ip-%s link", ErrWrongNode, peer, name, peer)
		}
		return nil
	}
	return c
}

func (id *Identity) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		Time:         func() time.Time { return verifyTime },
		// Resumed sessions would skip the certificates; connections live long anyway.
		SessionTicketsDisabled: true,
	}
}

// verify checks the other side's certificate and returns its node name.
func (id *Identity) verify(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w (it sent no certificate)", ErrSecret)
	}
	leaf := cs.PeerCertificates[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:       id.roots,
		CurrentTime: verifyTime,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return "", ErrSecret // its text would only confuse: there is one authority and no choice
	} else if err != nil {
		return "", fmt.Errorf("%w (%v)", ErrSecret, err)
	}
	name := leaf.Subject.CommonName
	if err := checkName("node name in the certificate", name); err != nil {
		return "", err
	}
	return name, nil
}

// PeerName is the node name of a verified connection.
func PeerName(cs *tls.ConnectionState) string {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return ""
	}
	return cs.PeerCertificates[0].Subject.CommonName
}

func loadNodeKey(path string) (ed25519.PrivateKey, error) {
	b, err := readPrivate(path, "node key")
	if errors.Is(err, fs.ErrNotExist) {
		if err := createNodeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create node key: %w", err)
		}
		b, err = readPrivate(path, "node key")
	}
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("node key %s is not one PEM block of type PRIVATE KEY; remove it to have a new one made", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("node key %s: %w; remove it to have a new one made", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("node key %s is a %T, want Ed25519; remove it to have a new one made", path, k)
	}
	return key, nil
}

func createNodeKey(path string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return createPrivate(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// checkName accepts what the tree accepts as a node or resource name. It keeps
// path separators and control characters out of URLs, file names and logs.
func checkName(what, s string) error {
	if s == "" || len(s) > 63 {
		return fmt.Errorf("%s %q has %d characters, want 1 to 63", what, s, len(s))
	}
	for i, r := range s {
		ok := r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '-' && i > 0
		if !ok {
			return fmt.Errorf("%s %q has a bad character at %d, want letters, digits, '_' and '-'", what, s, i)
		}
	}
	return nil
}
