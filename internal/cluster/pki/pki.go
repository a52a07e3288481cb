// Package pki makes the keys and certificates of a cluster. There is one certificate authority per trust domain
// (Kubernetes, etcd, aggregation, OVN, agents), so that a certificate of one never opens a door of another. It writes files and
// nothing else; existing valid files are kept, which makes every call repeatable.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 2 * 365 * 24 * time.Hour
	// renewBefore is how long before its end a certificate is made anew by the next `up`.
	renewBefore = 90 * 24 * time.Hour
	// skew accepts clocks that are behind.
	skew = time.Hour
)

// Authority signs certificates of one trust domain.
type Authority struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
}

// Leaf describes a certificate to issue.
type Leaf struct {
	CommonName    string   // the user name for Kubernetes
	Organizations []string // the groups for Kubernetes
	DNSNames      []string
	IPs           []net.IP
	Server        bool // may be a TLS server
	Client        bool // may be a TLS client
}

// Pair is a certificate with its key, both PEM.
type Pair struct{ Cert, Key []byte }

// PEM is the authority's certificate.
func (a *Authority) PEM() []byte { return a.certPEM }

// LoadOrCreateAuthority reads certFile and keyFile, or makes them when neither exists.
func LoadOrCreateAuthority(certFile, keyFile, commonName string) (*Authority, error) {
	pair, err := readPair(certFile, keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return createAuthority(certFile, keyFile, commonName)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority %q: %w", commonName, err)
	}
	return parseAuthority(pair, certFile)
}

func createAuthority(certFile, keyFile, commonName string) (*Authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	certPEM, err := sign(template, template, key.Public(), key, authorityLife)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %q: %w", commonName, err)
	}
	pair := Pair{Cert: certPEM, Key: keyPEM}
	if err := writePair(certFile, keyFile, pair); err != nil {
		return nil, err
	}
	return parseAuthority(pair, certFile)
}

func parseAuthority(pair Pair, file string) (*Authority, error) {
	cert, key, err := parsePair(pair)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", file, err)
	}
	return &Authority{cert: cert, key: key, certPEM: pair.Cert}, nil
}

// Issue signs a certificate for a new key.
func (a *Authority) Issue(leaf Leaf) (Pair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organizations},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: leaf.usages(),
		DNSNames:    leaf.DNSNames,
		IPAddresses: leaf.IPs,
	}
	certPEM, err := sign(template, a.cert, key.Public(), a.key, leafLife)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate %q: %w", leaf.CommonName, err)
	}
	return Pair{Cert: certPEM, Key: keyPEM}, nil
}

// EnsureFiles keeps the certificate in certFile while it is valid, signed by this authority and says what leaf says; otherwise it
// issues a new one.
func (a *Authority) EnsureFiles(certFile, keyFile string, leaf Leaf) (Pair, error) {
	pair, err := readPair(certFile, keyFile)
	if err == nil && a.accepts(pair, leaf) {
		return pair, nil
	}
	if pair, err = a.Issue(leaf); err != nil {
		return Pair{}, err
	}
	return pair, writePair(certFile, keyFile, pair)
}

// accepts tells whether a certificate needs no renewal.
func (a *Authority) accepts(pair Pair, leaf Leaf) bool {
	cert, _, err := parsePair(pair)
	if err != nil || cert.CheckSignatureFrom(a.cert) != nil || time.Until(cert.NotAfter) < renewBefore {
		return false
	}
	return cert.Subject.CommonName == leaf.CommonName && equal(cert.Subject.Organization, leaf.Organizations) &&
		equal(cert.DNSNames, leaf.DNSNames) && equal(texts(cert.IPAddresses), texts(leaf.IPs)) && len(cert.ExtKeyUsage) == len(leaf.usages())
}

func (l Leaf) usages() []x509.ExtKeyUsage {
	var usages []x509.ExtKeyUsage
	if l.Server {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	if l.Client {
		usages = append(usages, x509.ExtKeyUsageClientAuth)
	}
	return usages
}

// EnsureSigningKey makes a key pair that signs service-account tokens: the private key and the public key, PEM.
func EnsureSigningKey(keyFile, publicFile string) error {
	if _, err := readPair(publicFile, keyFile); err == nil {
		return nil
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode public key: %w", err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return writePair(publicFile, keyFile, Pair{Cert: public, Key: keyPEM})
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make private key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode private key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-skew)
	template.NotAfter = time.Now().Add(life)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func parsePair(pair Pair) (*x509.Certificate, crypto.Signer, error) {
	certBlock, _ := pem.Decode(pair.Cert)
	keyBlock, _ := pem.Decode(pair.Key)
	if certBlock == nil || keyBlock == nil {
		return nil, nil, errors.New("the file holds no PEM block")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(signer.Public()) {
		return nil, nil, errors.New("the certificate is not for the key beside it")
	}
	return cert, signer, nil
}

func readPair(certFile, keyFile string) (Pair, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return Pair{}, err
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: key}, nil
}

// writePair writes the key first: a certificate without its key would look complete after an interruption.
func writePair(certFile, keyFile string, pair Pair) error {
	if err := writeAtomic(keyFile, pair.Key, 0o600); err != nil {
		return err
	}
	return writeAtomic(certFile, pair.Cert, 0o644)
}

func writeAtomic(file string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	temporary := file + ".new"
	if err := os.WriteFile(temporary, data, mode); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}

func texts(ips []net.IP) []string {
	out := make([]string, 0, len(ips))
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
