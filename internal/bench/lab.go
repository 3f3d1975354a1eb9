package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/testenv"
)

// database is the name of the one that is measured.
const database = "bench"

// publication is what pg_recvlogical and the bridge both ask for.
const publication = "backstory"

// transport is the way from the bridge to Postgres.
type transport string

const (
	unixSocket transport = "unix"
	tcp        transport = "tcp"
)

// lab is the servers of one benchmark and the program that is measured.
type lab struct {
	tb     testenv.TB
	pg     *testenv.PG
	kafka  *testenv.Cluster
	admin  *kadm.Client
	binary string
	dir    string

	imports int // done so far, for names
}

// newLab starts a Postgres that calls fsync and a broker with the collector and
// the heap of a real one, and builds the bridge.
func newLab(tb testenv.TB, buffers string) (*lab, error) {
	l := &lab{tb: tb, dir: tb.TempDir()}
	l.binary = filepath.Join(l.dir, "backstory")
	if err := build(tb.Context(), l.binary); err != nil {
		return nil, err
	}
	l.pg = testenv.Postgres(tb, testenv.Durable(),
		testenv.PGSetting("shared_buffers", buffers), testenv.PGSetting("max_wal_size", "32GB"),
		testenv.PGSetting("checkpoint_timeout", "30min"), testenv.PGSetting("maintenance_work_mem", "512MB"),
		testenv.PGSetting("autovacuum", "off"))
	l.kafka = testenv.Kafka(tb, testenv.KafkaPrivate(), testenv.KafkaJVM(
		"-XX:-UseSerialGC", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:TieredStopAtLevel=4", "-Xms1g", "-Xmx1g"),
		testenv.KafkaProperty("log.segment.delete.delay.ms", "1000"),
		// Not those of tests: a broker that a busy machine keeps waiting is not dead.
		testenv.KafkaProperty("broker.session.timeout.ms", "30000"), testenv.KafkaProperty("broker.heartbeat.interval.ms", "1000"))
	client, err := kgo.NewClient(kgo.SeedBrokers(l.kafka.Brokers()...), kgo.MetadataMinAge(100*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	tb.Cleanup(client.Close)
	l.admin = kadm.NewClient(client)
	conn, err := l.connectTo("postgres")
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(tb.Context(), "CREATE DATABASE "+database)
	return l, err
}

// build compiles the bridge as a release is.
func build(ctx context.Context, path string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-o", path}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "backstory/cmd/backstory")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the bridge: %w: %s", err, out)
	}
	return nil
}

func (l *lab) ctx() context.Context { return l.tb.Context() }

func (l *lab) logf(format string, args ...any) {
	l.tb.Logf(time.Now().Format("15:04:05 ")+format, args...)
}

// host is where libpq finds the server by the given transport.
func (l *lab) host(t transport) (host, port string, err error) {
	host, port, _ = strings.Cut(l.pg.Addr(), ":")
	if t == tcp {
		return host, port, nil
	}
	if host = l.pg.Server(l.tb).Socket(); host == "" {
		return "", "", fmt.Errorf("the directory for temporary files (%s) is too deep for a Unix socket", os.TempDir())
	}
	return host, port, nil
}

// dsn is the connection string by the given transport.
func (l *lab) dsn(t transport) (string, error) {
	host, port, err := l.host(t)
	if err != nil {
		return "", err
	}
	q := url.Values{"host": {host}, "port": {port}, "sslmode": {"disable"}}
	return "postgres://postgres@/" + database + "?" + q.Encode(), nil
}

// connect opens a connection of the legacy application, which ends with the lab.
func (l *lab) connect() (*pgx.Conn, error) { return l.connectTo(database) }

func (l *lab) connectTo(name string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(l.ctx(), l.pg.DSN(name))
	if err != nil {
		return nil, err
	}
	l.tb.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server may be gone
	return conn, nil
}

// exec runs statements on a connection of their own, each in its own transaction.
func (l *lab) exec(sql ...string) error {
	conn, err := pgx.Connect(l.ctx(), l.pg.DSN(database))
	if err != nil {
		return err
	}
	defer conn.Close(l.ctx())
	for _, text := range sql {
		if _, err := conn.PgConn().Exec(l.ctx(), text).ReadAll(); err != nil {
			return fmt.Errorf("%.60s: %w", strings.TrimSpace(text), err)
		}
	}
	return nil
}

// transient is how long a broker may say that it can't tell the ends.
const transient = 30 * time.Second

// sums returns for each topic the sum of its partitions' end offsets. It asks
// again where the broker is not ready to say.
func (l *lab) sums(topics ...string) (map[string]int64, error) {
	for deadline := time.Now().Add(transient); ; {
		sums, err := l.askSums(topics)
		if err == nil || l.ctx().Err() != nil || time.Now().After(deadline) {
			return sums, err
		}
		time.Sleep(pollEnds)
	}
}

func (l *lab) askSums(topics []string) (map[string]int64, error) {
	listed, err := l.admin.ListEndOffsets(l.ctx(), topics...)
	if err != nil {
		return nil, fmt.Errorf("end offsets of %s: %w", strings.Join(topics, ", "), err)
	}
	sums := map[string]int64{}
	var failed error
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err != nil {
			failed = fmt.Errorf("end offset of %s: %w", o.Topic, o.Err)
		}
		sums[o.Topic] += o.Offset
	})
	return sums, failed
}

// deleteTopics gives the space of topics that are done with back.
func (l *lab) deleteTopics(topics ...string) error {
	_, err := l.admin.DeleteTopics(l.ctx(), topics...)
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}
