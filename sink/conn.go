package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// client is the way to the brokers: connections, and who leads which partition.
// It may be used by several goroutines.
type client struct {
	cfg       Config
	log       *slog.Logger
	addr      net.Addr // the brokers to begin with
	transport *kafka.Transport
	letIn     atomic.Bool // a broker has answered
}

// newClient reads the files that cfg names and connects to nothing yet. Only the
// given topics are known to leaders; none given means all of the cluster.
func newClient(cfg Config, log *slog.Logger, topics ...string) (*client, error) {
	encrypt, err := cfg.TLS.load()
	if err != nil {
		return nil, err
	}
	mechanism, err := cfg.SASL.load()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: cfg.RequestTimeout}
	return &client{
		cfg: cfg, log: log, addr: kafka.TCP(cfg.Brokers...),
		transport: &kafka.Transport{
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dialer.DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return &boundConn{Conn: conn, limit: cfg.RequestTimeout}, nil
			},
			DialTimeout:    cfg.RequestTimeout,
			MetadataTopics: topics,
			ClientID:       cfg.ClientID,
			TLS:            encrypt,
			SASL:           mechanism,
		},
	}, nil
}

// roundTrip sends a request and waits for the answer, for RequestTimeout at most.
// The broker is the one that the request's type asks for; addr says where to
// begin, nil: at the configured brokers. After an error the request may still be
// under way, and its buffers in use.
func (c *client) roundTrip(ctx context.Context, addr net.Addr, req protocol.Message) (protocol.Message, error) {
	if addr == nil {
		addr = c.addr
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	answer, err := c.transport.RoundTrip(ctx, addr, req)
	switch {
	case err == nil:
		c.letIn.Store(true)
	case c.letIn.Load() && errors.Is(err, kafka.SASLAuthenticationFailed):
		// Who was let in before is perhaps given another password just now: without
		// its code the error is one to try again.
		err = errors.New(err.Error() + "; tried again with the password that sasl.password_file has then")
	}
	return answer, err
}

// refresh forgets the metadata and the idle connections, so that the following
// request asks anew who leads what.
func (c *client) refresh() { c.transport.CloseIdleConnections() }

// close gives the connections back.
func (c *client) close() { c.transport.CloseIdleConnections() }

// layout is a topic as the metadata describes it.
type layout struct {
	topic    string
	err      error   // kafka.UnknownTopicOrPartition if the topic is not there
	leaders  []int32 // by partition; -1: none at present
	replicas int     // of partition 0
}

// reason says why a partition of the topic has no leader.
func (l *layout) reason() error {
	if l.err != nil {
		return l.err
	}
	return kafka.LeaderNotAvailable
}

// leaders returns the given topics in the given order, from metadata that is a
// few seconds old at most.
func (c *client) leaders(ctx context.Context, topics ...string) ([]layout, error) {
	res, err := c.roundTrip(ctx, nil, &metadata.Request{TopicNames: topics})
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	answer, ok := res.(*metadata.Response)
	if !ok || len(answer.Topics) < len(topics) {
		return nil, errors.New("metadata: the answer is incomplete")
	}
	out := make([]layout, len(topics))
	for i := range out {
		out[i] = layoutOf(&answer.Topics[i])
	}
	return out, nil
}

func layoutOf(t *metadata.ResponseTopic) layout {
	l := layout{topic: t.Name, leaders: make([]int32, len(t.Partitions))}
	if t.ErrorCode != 0 {
		l.err = kafka.Error(t.ErrorCode)
	}
	for i := range l.leaders {
		l.leaders[i] = -1
	}
	for _, p := range t.Partitions {
		if p.PartitionIndex < 0 || int(p.PartitionIndex) >= len(l.leaders) {
			l.err = fmt.Errorf("partition %d of %d", p.PartitionIndex, len(l.leaders))
			continue
		}
		if p.ErrorCode == 0 || kafka.Error(p.ErrorCode) == kafka.ReplicaNotAvailable {
			l.leaders[p.PartitionIndex] = p.LeaderID
		}
		if p.PartitionIndex == 0 {
			l.replicas = len(p.ReplicaNodes)
		}
	}
	return l
}

// boundConn turns "no deadline" into one that is limit away: the library takes
// the deadline off a new connection before it authenticates, so that a broker
// which falls silent there would hold it for ever. Idle connections do not read
// and requests set their own deadline, so nothing else notices.
type boundConn struct {
	net.Conn
	limit time.Duration
}

func (c *boundConn) bound(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now().Add(c.limit)
	}
	return t
}

func (c *boundConn) SetDeadline(t time.Time) error      { return c.Conn.SetDeadline(c.bound(t)) }
func (c *boundConn) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(c.bound(t)) }
func (c *boundConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.bound(t)) }

// load reads the certificates; nil means no encryption.
func (t TLSConfig) load() (*tls.Config, error) {
	if !t.On() {
		return nil, nil
	}
	out := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, //nolint:gosec // asked for by name
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, &ConfigError{Problems: []string{fmt.Sprintf("tls.ca_file: %v", err)}}
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &ConfigError{Problems: []string{fmt.Sprintf("tls.ca_file: %s has no PEM certificate", t.CAFile)}}
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, &ConfigError{Problems: []string{fmt.Sprintf("tls.cert_file, tls.key_file: %v", err)}}
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// load makes the mechanism; nil means no authentication. A password in a file is
// read again for each connection, since somebody may change it.
func (s SASLConfig) load() (sasl.Mechanism, error) {
	if s.Mechanism == "" {
		return nil, nil
	}
	now, err := s.mechanism()
	if err != nil || s.PasswordFile == "" {
		return now, err
	}
	return fileMechanism{name: now.Name(), cfg: s}, nil
}

// mechanism is the one with the password of now.
func (s SASLConfig) mechanism() (sasl.Mechanism, error) {
	password, err := s.secret()
	if err != nil {
		return nil, err
	}
	switch s.Mechanism {
	case "plain":
		return plain.Mechanism{Username: s.Username, Password: password}, nil
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, s.Username, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, s.Username, password)
	}
	return nil, &ConfigError{Problems: []string{fmt.Sprintf("sasl.mechanism: %q is not known", s.Mechanism)}}
}

// fileMechanism reads the password when a connection begins.
type fileMechanism struct {
	name string
	cfg  SASLConfig
}

// Name is that of the mechanism.
func (m fileMechanism) Name() string { return m.name }

// Start begins with the password of now. A file that cannot be read was there at
// the start, so that the error is one to try again.
func (m fileMechanism) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	now, err := m.cfg.mechanism()
	if err != nil {
		return nil, nil, errors.New(err.Error())
	}
	return now.Start(ctx)
}
