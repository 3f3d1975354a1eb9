package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Security says how to come in by the secured listener of a cluster. The files
// live as long as the cluster.
type Security struct {
	CAFile   string // PEM; empty without TLS
	CertFile string // of a client, for mutual TLS
	KeyFile  string

	protocol   string // SSL, SASL_SSL, SASL_PLAINTEXT
	properties [][2]string
}

// SecuredBrokers are the addresses of the secured listener.
func (k *Cluster) SecuredBrokers() []string {
	var addrs []string
	for _, n := range k.nodes {
		addrs = append(addrs, n.secured)
	}
	return addrs
}

type clientAuth string

const (
	noTLS     clientAuth = ""
	serverTLS clientAuth = "none"
	mutualTLS clientAuth = "required"
)

type saslUser struct{ mechanism, name, password string }

// KafkaTLS adds a listener with TLS; if mutual, clients must show a certificate.
func KafkaTLS(mutual bool) KafkaOption {
	return func(o *kafkaOptions) {
		o.tls = serverTLS
		if mutual {
			o.tls = mutualTLS
		}
	}
}

// KafkaSASL adds a user to the secured listener, of mechanism PLAIN,
// SCRAM-SHA-256 or SCRAM-SHA-512. Name and password consist of letters and digits.
func KafkaSASL(mechanism, name, password string) KafkaOption {
	return func(o *kafkaOptions) { o.users = append(o.users, saslUser{mechanism, name, password}) }
}

// scramUsers spells the users for Kafka's storage tool.
func scramUsers(users []saslUser) []string {
	var out []string
	for _, u := range users {
		if strings.HasPrefix(u.mechanism, "SCRAM-") {
			out = append(out, fmt.Sprintf("%s=[name=%s,password=%s]", u.mechanism, u.name, u.password))
		}
	}
	return out
}

// secure sets k.security, if the options ask for any.
func (k *Cluster) secure(o kafkaOptions) error {
	if o.tls == noTLS && len(o.users) == 0 {
		return nil
	}
	s := &Security{protocol: "PLAINTEXT"}
	if o.tls != noTLS {
		s.protocol = "SSL"
		if err := s.certificates(k.scratch.Dir); err != nil {
			return fmt.Errorf("certificates: %w", err)
		}
		const prefix = "listener.name.secured.ssl."
		s.properties = append(s.properties, [][2]string{
			{prefix + "keystore.type", "PEM"},
			{prefix + "keystore.location", filepath.Join(k.scratch.Dir, "server.pem")},
			{prefix + "truststore.type", "PEM"},
			{prefix + "truststore.location", s.CAFile},
			{prefix + "client.auth", string(o.tls)},
		}...)
	}
	if len(o.users) > 0 {
		s.protocol = map[string]string{"PLAINTEXT": "SASL_PLAINTEXT", "SSL": "SASL_SSL"}[s.protocol]
		s.properties = append(s.properties, saslProperties(o.users)...)
	}
	k.security = s
	return nil
}

func saslProperties(users []saslUser) [][2]string {
	var mechanisms []string
	plain := "org.apache.kafka.common.security.plain.PlainLoginModule required"
	for _, u := range users {
		if !slices.Contains(mechanisms, u.mechanism) {
			mechanisms = append(mechanisms, u.mechanism)
		}
		if u.mechanism == "PLAIN" {
			plain += fmt.Sprintf(" user_%s=%q", u.name, u.password)
		}
	}
	const prefix = "listener.name.secured."
	out := [][2]string{{prefix + "sasl.enabled.mechanisms", strings.Join(mechanisms, ",")}}
	for _, m := range mechanisms {
		module := "org.apache.kafka.common.security.scram.ScramLoginModule required"
		if m == "PLAIN" {
			module = plain
		}
		out = append(out, [2]string{prefix + strings.ToLower(m) + ".sasl.jaas.config", module + ";"})
	}
	return out
}

// TLS is the configuration of a client: it trusts the cluster's authority and
// shows the client's certificate. Nil without TLS.
func (s *Security) TLS() (*tls.Config, error) {
	if s.CAFile == "" {
		return nil, nil
	}
	ca, err := os.ReadFile(s.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", s.CAFile)
	}
	cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}

// certificates makes an authority, and a certificate each for the servers and
// for a client named "client".
func (s *Security) certificates(dir string) error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	serverCert, serverKey, err := ca.issue("localhost", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	cert, key, err := ca.issue("client", x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	s.CAFile, s.CertFile, s.KeyFile = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	return errors.Join(
		os.WriteFile(s.CAFile, ca.pem, 0o644),
		os.WriteFile(s.CertFile, cert, 0o644),
		os.WriteFile(s.KeyFile, key, 0o600),
		os.WriteFile(filepath.Join(dir, "server.pem"), slices.Concat(serverKey, serverCert, ca.pem), 0o600),
	)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("testenv authority")
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert: cert, key: key, pem: pemBlock("CERTIFICATE", der)}, err
}

// issue returns certificate and PKCS #8 key as PEM.
func (a *authority) issue(name string, usage ...x509.ExtKeyUsage) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	t := template(name)
	t.KeyUsage, t.ExtKeyUsage = x509.KeyUsageDigitalSignature, usage
	t.DNSNames, t.IPAddresses = []string{name}, []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	return pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", pkcs8), err
}

func template(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
