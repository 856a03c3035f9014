package transport

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// infoNBD labels the authority for NBD clients. It is not the one that admits nodes: a machine that may
// use a device must not be able to join the cluster with what it was given for that.
const infoNBD = "mars nbd certificate authority v1"

// Names of the files that NBD clients look for in a directory (qemu's tls-creds-x509, libnbd's tls-certificates).
const (
	NBDCAFile   = "ca-cert.pem"
	NBDCertFile = "client-cert.pem"
	NBDKeyFile  = "client-key.pem"
)

// NBDAuthority vouches for NBD servers and their clients. Every node with the same cluster secret has the same.
type NBDAuthority struct {
	key   ed25519.PrivateKey
	ca    *x509.Certificate
	roots *x509.CertPool
}

// NewNBDAuthority derives the authority from the cluster secret.
func NewNBDAuthority(secret Secret) (*NBDAuthority, error) {
	if len(secret) != SecretSize {
		return nil, fmt.Errorf("NBD certificates: cluster secret has %d bytes, want %d", len(secret), SecretSize)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, infoNBD, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("NBD certificates: %w", err)
	}
	a := &NBDAuthority{key: ed25519.NewKeyFromSeed(seed)}
	if a.ca, a.roots, err = authorityCert("MARS NBD clients", a.key); err != nil {
		return nil, fmt.Errorf("NBD certificates: %w", err)
	}
	return a, nil
}

// issue makes a key and its certificate.
func (a *NBDAuthority) issue(name string, usage x509.ExtKeyUsage, hosts []string, ips []net.IP) (tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(2)),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     hosts,
		IPAddresses:  ips,
		NotBefore:    notBefore,
		NotAfter:     notAfter,
		// An Ed25519 key cannot encipher keys, but qemu before 10 refuses a certificate that does not say so.
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.ca, pub, a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// ServerTLS admits clients with a certificate of this authority. The server answers to hosts and to the
// address at which it was reached, so that clients can check whom they talk to.
func (a *NBDAuthority) ServerTLS(node string, hosts ...string) *tls.Config {
	// Made for each connection, because the address may be any of the machine's, also one that comes later.
	base := NBDServerTLS(a.roots, tls.Certificate{})
	base.Time = func() time.Time { return verifyTime }
	base.Certificates = nil
	base.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		var ips []net.IP
		if t, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
			ips = append(ips, t.IP)
		}
		c, err := a.issue(node, x509.ExtKeyUsageServerAuth, append([]string{node}, hosts...), ips)
		return &c, err
	}
	return base
}

// NBDServerTLS is what an NBD server with given certificates asks of its clients.
func NBDServerTLS(clients *x509.CertPool, cert tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12, // GnuTLS of old clients
		Certificates:           []tls.Certificate{cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              clients,
		SessionTicketsDisabled: true,
	}
}

// LoadNBDServerTLS is NBDServerTLS with certificates from PEM files.
func LoadNBDServerTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("NBD server certificate: %w", err)
	}
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("authority of NBD clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("authority of NBD clients: %s has no certificate in PEM form", caFile)
	}
	return NBDServerTLS(pool, cert), nil
}

// WriteClient makes a key and a certificate for the client name and writes them, with the authority's
// certificate, into dir under the names that NBD clients look for. It replaces nothing.
func (a *NBDAuthority) WriteClient(dir, name string) error {
	cert, err := a.issue(name, x509.ExtKeyUsageClientAuth, nil, nil)
	if err != nil {
		return fmt.Errorf("NBD client certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return fmt.Errorf("NBD client certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("NBD client certificate: %w", err)
	}
	for _, f := range []struct {
		name, typ string
		der       []byte
	}{{NBDKeyFile, "PRIVATE KEY", key}, {NBDCertFile, "CERTIFICATE", cert.Certificate[0]}, {NBDCAFile, "CERTIFICATE", a.ca.Raw}} {
		path := filepath.Join(dir, f.name)
		if err := createPrivate(path, pem.EncodeToMemory(&pem.Block{Type: f.typ, Bytes: f.der})); err != nil {
			return fmt.Errorf("NBD client certificate: %w", err)
		}
	}
	return nil
}
