// Package secret authenticates the nodes of a cluster to each other by a file that all of
// them have. Unlike a certificate authority, it takes no more than to copy that file.
//
// An ed25519 key is derived from the secret. Each node makes a certificate of that key
// when it starts, and accepts a peer if and only if the peer's certificate has the same
// key. A TLS 1.3 handshake proves that a side holds the private key of its certificate,
// so a peer is accepted if it knows the secret, and the traffic is encrypted with keys
// that outlive neither the connection nor a later theft of the secret.
//
// That is as strong as the secret: 32 random bytes cannot be guessed, a word can, and
// without talking to a node, since the public key is enough to try words on. It tells
// the cluster from others, and not one node from another. So a single node cannot be
// shut out: whoever has had the file is a node until all nodes have a new one.
package secret

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"runtime"
	"time"
)

const (
	minLength = 16
	maxLength = 64 << 10

	// info separates this key from others that may be made of the same secret one day.
	info = "holdfast cluster, ed25519, version 1"
)

// A Secret is what the nodes of a cluster share. It is made by Load. Its methods may be
// called by any number of goroutines at once.
type Secret struct {
	public      ed25519.PublicKey
	certificate tls.Certificate
}

// Load reads the secret from a file: at least 16 bytes beside white space around them.
// It refuses a file that others than its owner may read.
func Load(path string) (*Secret, error) {
	text, err := read(path)
	if err == nil && len(text) < minLength {
		err = fmt.Errorf("it has %d bytes; want at least %d, such as those of: openssl rand -base64 32", len(text), minLength)
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %s: %w", path, err)
	}
	return derive(text)
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err) // Load names the file
	}
	defer f.Close()
	file, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Windows has no such bits: what Go shows there says nothing.
	if mode := file.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return nil, fmt.Errorf("the file has mode %#o, so others than its owner can read or change it; want 0600 or 0400", mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxLength+1))
	if err == nil && len(text) > maxLength {
		err = fmt.Errorf("the file is longer than %d bytes", maxLength)
	}
	return bytes.TrimSpace(text), err
}

func derive(text []byte) (*Secret, error) {
	seed, err := hkdf.Key(sha256.New, text, nil, info, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("secret: derive the key: %w", err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	// Nobody looks at the names and times of the certificate: peers look at its key. The
	// times are those that RFC 5280 gives to a certificate without an end.
	template := &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("secret: make the certificate: %w", err)
	}
	return &Secret{public, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}}, nil
}

// Server returns the configuration of the side that accepts connections: TLS 1.3, and
// no peer without the secret. It serves a peer that also dials with it.
func (s *Secret) Server() *tls.Config {
	c := s.Client()
	c.ClientAuth = tls.RequireAnyClientCert
	return c
}

// Client returns the configuration of the side that dials. It does not look at the
// server's name.
func (s *Secret) Client() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{s.certificate},
		MinVersion:   tls.VersionTLS13,

		// Verifying a chain would need a certificate authority, and that of the host name
		// would say nothing, as all nodes have the same key. What stands in their place is
		// stricter: one key and no other. VerifyConnection is called for resumed
		// connections too, VerifyPeerCertificate is not; and none is resumed.
		InsecureSkipVerify:     true,
		VerifyConnection:       s.verify,
		SessionTicketsDisabled: true,
	}
}

var errOther = errors.New("secret: the peer's certificate is not of this cluster's secret")

func (s *Secret) verify(c tls.ConnectionState) error {
	if len(c.PeerCertificates) == 0 {
		return errors.New("secret: the peer has no certificate")
	}
	key, ok := c.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || !key.Equal(s.public) {
		return errOther
	}
	return nil
}
