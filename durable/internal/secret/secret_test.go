package secret

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

const text = "correct horse battery staple"

func file(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}

func load(t *testing.T, text string) *Secret {
	t.Helper()
	s, err := Load(file(t, text, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoad(t *testing.T) {
	tests := []struct {
		name, text string
		mode       os.FileMode
		want       string // of the error; empty: there is none
	}{
		{"good", text, 0o600, ""},
		{"read only", text, 0o400, ""},
		{"shortest", strings.Repeat("x", 16) + "\n", 0o600, ""},
		{"short", strings.Repeat("x", 15) + strings.Repeat("\n", 10), 0o600, "it has 15 bytes; want at least 16"},
		{"empty", "", 0o600, "it has 0 bytes"},
		{"long", strings.Repeat("x", maxLength+1), 0o600, "longer than 65536 bytes"},
		{"group", text, 0o640, "the file has mode 0640, so others than its owner can read or change it; want 0600"},
		{"others", text, 0o604, "the file has mode 0604"},
		{"written by others", text, 0o602, "the file has mode 0602"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if runtime.GOOS == "windows" && test.mode&0o077 != 0 {
				t.Skip("Windows has no such modes")
			}
			name := file(t, test.text, test.mode)
			s, err := Load(name)
			if test.want == "" {
				if err != nil || s == nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), name) {
				t.Errorf("%v; want %q and the name", err, test.want)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) && !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

// White space around the secret is not part of it: editors add it.
func TestSpace(t *testing.T) {
	if err, _ := shake(load(t, text).Server(), load(t, " "+text+"\r\n").Client()); err != nil {
		t.Error(err)
	}
}

// shake connects the two and passes a byte each way. It returns the errors of the sides.
func shake(server, client *tls.Config) (errServer, errClient error) {
	s, c := net.Pipe()
	late := time.Now().Add(10 * time.Second)
	s.SetDeadline(late)
	c.SetDeadline(late)
	ended := make(chan error, 1)
	go func() {
		conn := tls.Server(s, server)
		defer s.Close()
		ended <- pass(conn, conn.Handshake())
	}()
	conn := tls.Client(c, client)
	errClient = pass(conn, conn.Handshake())
	c.Close()
	return <-ended, errClient
}

// pass writes a byte and reads the other's.
func pass(c net.Conn, err error) error {
	if err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() { _, err := c.Write([]byte{1}); written <- err }()
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return err
	}
	return <-written
}

// other returns a certificate of another key.
func other(t *testing.T) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

func TestHandshake(t *testing.T) {
	s, foreign := load(t, text), load(t, text+" of another cluster")
	with := func(c *tls.Config, change func(*tls.Config)) *tls.Config { change(c); return c }
	trusting := func(certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, Certificates: certificates, ClientAuth: tls.RequestClientCert}
	}
	// The right certificate in front of a key that is not that of the certificate.
	stolen := tls.Certificate{Certificate: s.certificate.Certificate, PrivateKey: other(t).PrivateKey}
	tests := []struct {
		name           string
		server, client *tls.Config
		ok             bool
	}{
		{"the same secret", s.Server(), s.Client(), true},
		{"loaded twice", s.Server(), load(t, text).Client(), true},
		{"one configuration for both", s.Server(), s.Server(), true},
		{"a client of another secret", s.Server(), foreign.Client(), false},
		{"a server of another secret", foreign.Server(), s.Client(), false},
		{"a client without a certificate", s.Server(), trusting(), false},
		{"a client with a certificate of its own", s.Server(), trusting(other(t)), false},
		{"a server with a certificate of its own", trusting(other(t)), s.Client(), false},
		{"a client with the certificate and not its key", s.Server(), trusting(stolen), false},
		{"a server with the certificate and not its key", trusting(stolen), s.Client(), false},
		{"a client of TLS 1.2", s.Server(), with(s.Client(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), false},
		{"a server of TLS 1.2", with(s.Server(), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), s.Client(), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			errServer, errClient := shake(test.server, test.client)
			if test.ok && (errServer != nil || errClient != nil) {
				t.Errorf("%v; %v", errServer, errClient)
			}
			if !test.ok && (errServer == nil || errClient == nil) {
				t.Errorf("the server's error is %v, the client's %v; want both", errServer, errClient)
			}
		})
	}
}

// Neither side talks to a peer without TLS.
func TestPlaintext(t *testing.T) {
	s := load(t, text)
	for name, side := range map[string]func(net.Conn) *tls.Conn{
		"server": func(c net.Conn) *tls.Conn { return tls.Server(c, s.Server()) },
		"client": func(c net.Conn) *tls.Conn { return tls.Client(c, s.Client()) },
	} {
		ours, theirs := net.Pipe()
		go func() {
			go theirs.Write([]byte("INFO {\"server_id\":\"plain\"}\r\n"))
			theirs.SetDeadline(time.Now().Add(time.Second))
			for b := make([]byte, 1024); ; {
				if _, err := theirs.Read(b); err != nil {
					return
				}
			}
		}()
		ours.SetDeadline(time.Now().Add(10 * time.Second))
		if err := side(ours).Handshake(); err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
			t.Errorf("%s: %v", name, err)
		}
		ours.Close()
		theirs.Close()
	}
}

// A connection is not resumed, so that each one shows the secret anew.
func TestNoResumption(t *testing.T) {
	s := load(t, text)
	client := s.Client()
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for range 2 {
		resumed := false
		client.VerifyConnection = func(c tls.ConnectionState) error { resumed = c.DidResume; return s.verify(c) }
		if err, _ := shake(s.Server(), client); err != nil || resumed {
			t.Errorf("%v; resumed: %v", err, resumed)
		}
	}
}
