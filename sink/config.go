package sink

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Config says how to reach Kafka and how to write.
type Config struct {
	// Brokers are host:port of one or more brokers to begin with.
	Brokers []string `yaml:"brokers" mapstructure:"brokers"`
	// ClientID names the bridge in the brokers' logs and quotas. Default "backstory".
	ClientID string `yaml:"client_id" mapstructure:"client_id"`
	// Compression of batches: none, gzip, snappy, lz4 or zstd. Default lz4.
	Compression string `yaml:"compression" mapstructure:"compression"`
	// MaxRequest bounds, in bytes, the batches of one request to one broker; a
	// single larger batch still goes. 64 KiB to 100 MB. Default 16 MiB.
	MaxRequest int `yaml:"max_request_bytes" mapstructure:"max_request_bytes"`
	// RequestTimeout ends one attempt of a request, and one way to a connection
	// (TLS and SASL included). 1 s to 10 min. Default 30 s.
	RequestTimeout time.Duration `yaml:"request_timeout" mapstructure:"request_timeout"`
	// TransactionalID is the name that fences former instances. Default: made of
	// the slot and the first of the events topics; to be set only where the rights on
	// transactional ids ask for another name, and never to that of another bridge.
	TransactionalID string `yaml:"transactional_id" mapstructure:"transactional_id"`
	// DeadLetterTopic takes the records that are too large for their topic, which
	// get a stand-in. It belongs to this bridge alone. Empty: such a record stops
	// the bridge.
	DeadLetterTopic string `yaml:"dead_letter_topic" mapstructure:"dead_letter_topic"`
	// CreateTopics allows the bridge to make missing topics. Default true.
	CreateTopics bool `yaml:"create_topics" mapstructure:"create_topics"`

	TLS  TLSConfig  `yaml:"tls" mapstructure:"tls"`
	SASL SASLConfig `yaml:"sasl" mapstructure:"sasl"`
}

// TLSConfig encrypts the connections. Any file makes Enabled true.
type TLSConfig struct {
	Enabled bool `yaml:"enabled" mapstructure:"enabled"`
	// CAFile has the PEM certificates that the brokers are checked against.
	// Default: those of the system.
	CAFile string `yaml:"ca_file" mapstructure:"ca_file"`
	// CertFile and KeyFile, both PEM, are the bridge's own certificate (mTLS).
	CertFile string `yaml:"cert_file" mapstructure:"cert_file"`
	KeyFile  string `yaml:"key_file" mapstructure:"key_file"`
	// ServerName is expected in the brokers' certificates. Default: the host name.
	ServerName string `yaml:"server_name" mapstructure:"server_name"`
	// InsecureSkipVerify accepts any certificate: for tests only.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify" mapstructure:"insecure_skip_verify"`
}

// On reports whether connections are encrypted.
func (t TLSConfig) On() bool {
	return t.Enabled || t.CAFile != "" || t.CertFile != "" || t.KeyFile != ""
}

// SASLConfig authenticates the bridge.
type SASLConfig struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512; empty: no SASL.
	Mechanism string `yaml:"mechanism" mapstructure:"mechanism"`
	Username  string `yaml:"username" mapstructure:"username"`
	// Password, or the file that has it (a newline at its end is cut).
	Password     string `yaml:"password" mapstructure:"password"`
	PasswordFile string `yaml:"password_file" mapstructure:"password_file"`
}

const (
	minRequest = 64 << 10
	maxRequest = 100_000_000 // brokers take 100 MiB (socket.request.max.bytes), frame included
	minTimeout = time.Second
	maxTimeout = 10 * time.Minute
)

// topicName is what brokers accept as the name of a topic.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// DefaultConfig is a complete configuration but for Brokers.
func DefaultConfig() Config {
	return Config{
		ClientID:       "backstory",
		Compression:    "lz4",
		MaxRequest:     16 << 20,
		RequestTimeout: 30 * time.Second,
		CreateTopics:   true,
	}
}

// Validate returns a *ConfigError that names every wrong key.
func (c Config) Validate() error {
	var p problems
	p.check(len(c.Brokers) > 0, "brokers: at least one is needed, as host:port")
	for _, b := range c.Brokers {
		if err := checkBroker(b); err != nil {
			p.add("brokers: %q: %v", b, err)
		}
	}
	p.check(c.ClientID != "" && len(c.ClientID) <= 1000, "client_id: 1 to 1000 bytes, not %d", len(c.ClientID))
	if _, ok := codecs[c.Compression]; !ok {
		p.add("compression: none, gzip, snappy, lz4 or zstd, not %q", c.Compression)
	}
	p.check(c.MaxRequest >= minRequest && c.MaxRequest <= maxRequest,
		"max_request_bytes: %d to %d, not %d", minRequest, maxRequest, c.MaxRequest)
	p.check(c.RequestTimeout >= minTimeout && c.RequestTimeout <= maxTimeout,
		"request_timeout: %s to %s, not %s", minTimeout, maxTimeout, c.RequestTimeout)
	p.check(len(c.TransactionalID) <= 249, "transactional_id: at most 249 bytes, not %d", len(c.TransactionalID))
	p.check(c.DeadLetterTopic == "" || validTopic(c.DeadLetterTopic),
		"dead_letter_topic: %q is no topic name (letters, digits, '.', '_' and '-', at most 249)", c.DeadLetterTopic)
	c.TLS.validate(&p)
	c.SASL.validate(&p)
	return p.err()
}

func (t TLSConfig) validate(p *problems) {
	p.check((t.CertFile == "") == (t.KeyFile == ""), "tls.cert_file, tls.key_file: both or none")
	for _, f := range []struct{ key, name string }{
		{"tls.ca_file", t.CAFile}, {"tls.cert_file", t.CertFile}, {"tls.key_file", t.KeyFile},
	} {
		if f.name == "" {
			continue
		}
		if _, err := os.Stat(f.name); err != nil {
			p.add("%s: %v", f.key, err)
		}
	}
	p.check(t.On() || t.ServerName == "", "tls.server_name: has no effect without tls.enabled")
	p.check(t.On() || !t.InsecureSkipVerify, "tls.insecure_skip_verify: has no effect without tls.enabled")
}

func (s SASLConfig) validate(p *problems) {
	switch s.Mechanism {
	case "":
		p.check(s.Username == "" && s.Password == "" && s.PasswordFile == "",
			"sasl.mechanism: plain, scram-sha-256 or scram-sha-512 is needed with a username or password")
		return
	case "plain", "scram-sha-256", "scram-sha-512":
	default:
		p.add("sasl.mechanism: plain, scram-sha-256 or scram-sha-512, not %q", s.Mechanism)
	}
	p.check(s.Username != "", "sasl.username: is missing")
	p.check((s.Password == "") != (s.PasswordFile == ""), "sasl.password, sasl.password_file: one of the two")
	if s.PasswordFile != "" {
		if _, err := os.Stat(s.PasswordFile); err != nil {
			p.add("sasl.password_file: %v", err)
		}
	}
}

// secret returns the password, read from its file where there is one.
func (s SASLConfig) secret() (string, error) {
	if s.PasswordFile == "" {
		return s.Password, nil
	}
	b, err := os.ReadFile(s.PasswordFile)
	if err != nil {
		return "", &ConfigError{Problems: []string{fmt.Sprintf("sasl.password_file: %v", err)}}
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func checkBroker(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("is not host:port")
	}
	if host == "" {
		return errors.New("has no host")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return errors.New("has no port from 1 to 65535")
	}
	return nil
}

func validTopic(name string) bool {
	return topicName.MatchString(name) && name != "." && name != ".."
}

// problems collects what is wrong, so that all of it is told at once.
type problems []string

func (p *problems) add(format string, args ...any) {
	*p = append(*p, fmt.Sprintf(format, args...))
}

func (p *problems) check(ok bool, format string, args ...any) {
	if !ok {
		p.add(format, args...)
	}
}

func (p *problems) err() error {
	if len(*p) == 0 {
		return nil
	}
	return &ConfigError{Problems: *p}
}
