package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kfake"

	"backstory/internal/testenv"
)

// asMain makes the test binary the program itself.
const asMain = envPrefix + "TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		os.Exit(run(os.Args[1:]))
	}
	testenv.Main(m)
}

// program is backstory as a process of its own, in an empty directory.
func program(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // says what it hangs in
	cmd.WaitDelay = 10 * time.Second
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asMain+"=1")
	return cmd
}

// outcome runs the program and returns its exit code and what it said.
func outcome(t *testing.T, dir string, args ...string) (int, string) {
	t.Helper()
	cmd := program(t, dir, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestExitCodesWithoutServers(t *testing.T) {
	t.Parallel()
	dead := deadAddress(t)
	dsn := "--source.dsn=postgres://u:hush@" + dead + "/db"
	mapping, err := filepath.Abs("../../configs/products.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		code int
		says string // a regular expression
	}{
		{"help", []string{"--help"}, 0, `Usage:`},
		{"help of a command", []string{"run", "--help"}, 0, `backstory run --config configs/backstory.yaml`},
		{"help on the configuration", []string{"help", "config"}, 0, `max_request_bytes: 16MiB`},
		{"help on nothing", []string{"help", "confg"}, 2, `no help on "confg"; did you mean config\?`},
		{"version", []string{"version"}, 0, `^backstory .*go1`},
		{"no such command", []string{"statsu"}, 2, `unknown command "statsu".*did you mean status`},
		{"an argument too many", []string{"run", "now"}, 2, `unknown command "now"`},
		{"no such flag", []string{"run", "--source.dns=x"}, 2, `--source\.dns: unknown flag; did you mean --source\.dsn\?`},
		{"a flag without a value", []string{"run", "--source.dsn"}, 2, `flag needs an argument`},
		{"no such file", []string{"run", "-c", "absent.yaml"}, 2, `absent\.yaml`},
		{"nothing configured", []string{"run"}, 2, `(?s)source\.dsn: .*kafka\.brokers: `},
		{"a DSN that does not parse", []string{"run", "--source.dsn=postgres://u:hush@host:port/db", "--kafka.brokers=" + dead}, 2, `source\.dsn`},
		{"no such mapping", []string{"run", dsn, "--kafka.brokers=" + dead}, 2, `products\.yaml`},
		{"a wrong log level", []string{"status", "--log-level=loud"}, 2, `log\.level: .*"loud"`},
		{"Postgres out of reach", []string{"run", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--http.listen=", "--bridge.startup_timeout=200ms"}, 1, `(?s)` + regexp.QuoteMeta(dead)},
		{"both out of reach", []string{"doctor", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--bridge.startup_timeout=1s"}, 1, `(?s)✗ postgres.*✗ kafka`},
		{"no bridge", []string{"status", "--http.listen=" + dead}, 1, `no bridge answers at ` + regexp.QuoteMeta(dead)},
		{"no HTTP", []string{"status", "--http.listen="}, 2, `http\.listen`},
		{"no broker", []string{"tail", "--brokers=" + dead, "some.topic"}, 1, `no broker can be reached`},
		{"no topic", []string{"tail", "--brokers=" + dead}, 2, `name a topic`},
		{"a topic that is not mapped", []string{"tail", "--kafka.brokers=" + dead, "--mapping=" + mapping, "product.event"}, 2, `did you mean product\.events\?`},
		{"a wrong start", []string{"tail", "--brokers=" + dead, "t", "--from=yesterday"}, 2, `--from: `},
		{"verify without a bridge", []string{"verify", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--http.listen=" + dead}, 3, `no bridge answers at .*start the bridge`},
		{"verify without HTTP", []string{"verify", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--http.listen="}, 2, `http\.listen`},
		{"verify of a table that is not mapped", []string{"verify", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "public.product"}, 2, `did you mean public\.products\?`},
		{"verify with a wrong limit", []string{"verify", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--limit=0"}, 2, `--limit: `},
		{"adopting without comparing", []string{"backfill", dsn, "--kafka.brokers=" + dead, "--mapping=" + mapping, "--adopt-topics"}, 2, `--adopt-topics: goes with --reconcile`},
		{"a demo without changes", []string{"demo", "--rate=0"}, 2, `--rate: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, said := outcome(t, t.TempDir(), tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !regexp.MustCompile(tt.says).MatchString(said) {
				t.Errorf("want %s in:\n%s", tt.says, said)
			}
			if strings.Contains(said, "hush") {
				t.Errorf("the password is in:\n%s", said)
			}
		})
	}
}

// deadAddress is one that refuses connections.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// site is a database with the table, a broker, and the files of a bridge.
type site struct {
	dir, dsn, broker string
	http             string
	pg               *testenv.PG
}

const table = `CREATE TABLE products (id bigint PRIMARY KEY, sku text, unit_price numeric(12,2), stock int, image bytea);
	INSERT INTO products VALUES (1, 'A-1', 19.90, 4)`

const mappingOfTable = `
tables:
  - table: public.products
    aggregate: Product
    fields: {unit_price: price}
    omit: [image]
    topics: {events: product.events, latest: product.latest, partitions: 2, replication: 1}
    events: [{type: PriceChanged, when: [price]}]
`

func newSite(t *testing.T, topics ...kfake.Opt) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), http: deadAddress(t), pg: testenv.Postgres(t)}
	s.dsn = s.pg.Database(t)
	s.pg.Exec(t, s.dsn, table)
	s.broker = testenv.KFake(t, topics...).ListenAddrs()[0]
	s.write(t, mappingOfTable)
	return s
}

func (s *site) write(t *testing.T, mapping string) {
	t.Helper()
	slot := "exit_" + regexp.MustCompile(`[^a-z0-9_]`).ReplaceAllString(strings.ToLower(t.Name()), "_")
	write(t, filepath.Join(s.dir, "products.yaml"), mapping)
	write(t, filepath.Join(s.dir, "backstory.yaml"), fmt.Sprintf(
		"source: {dsn: %q, slot: %s}\nkafka: {brokers: [%q]}\nhttp: {listen: %q}\nbridge: {startup_timeout: 2s}\n",
		s.dsn, slot[:min(len(slot), 60)], s.broker, s.http))
}

// slots counts the database's replication slots.
func (s *site) slots(t *testing.T) (n int) {
	t.Helper()
	conn := connect(t, s.dsn)
	if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // the test is over
	return conn
}

func TestExitCodesWithServers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*testing.T, *site)
		code   int
		says   string
	}{
		{"a column that is not there", func(t *testing.T, s *site) {
			s.write(t, strings.Replace(mappingOfTable, "when: [price]", "when: [prize]", 1))
		}, 2, `(?s)prize.*price`},
		{"a table that is not there", func(t *testing.T, s *site) {
			s.write(t, strings.Replace(mappingOfTable, "public.products", "public.product", 1))
		}, 3, `(?s)public\.product\b.*public\.products`},
		{"a table without a key", func(t *testing.T, s *site) {
			s.pg.Exec(t, s.dsn, "ALTER TABLE products DROP CONSTRAINT products_pkey")
		}, 3, `public\.products`},
		{"Kafka out of reach", func(t *testing.T, s *site) {
			s.broker = deadAddress(t)
			s.write(t, mappingOfTable)
		}, 1, `(?s)kafka`},
		{"an events topic with fewer partitions", func(t *testing.T, s *site) {
			s.broker = testenv.KFake(t, kfake.SeedTopics(1, "product.events")).ListenAddrs()[0]
			s.write(t, mappingOfTable)
		}, 3, `topic product\.events`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			tt.change(t, s)
			for _, command := range []string{"doctor", "run"} {
				code, said := outcome(t, s.dir, command, "-c", "backstory.yaml")
				if code != tt.code {
					t.Errorf("%s: exit code %d, want %d", command, code, tt.code)
				}
				if !regexp.MustCompile(tt.says).MatchString(said) {
					t.Errorf("%s: want %s in:\n%s", command, tt.says, said)
				}
				if tt.code != exitFailed && s.slots(t) > 0 {
					t.Errorf("%s: a refused start left a slot behind", command)
				}
			}
		})
	}
}

// TestRunFromStartToEnd asks a running bridge for its status, reads its topics
// and ends it in order.
func TestRunFromStartToEnd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if code, said := outcome(t, s.dir, "doctor", "-c", "backstory.yaml"); code != 0 {
		t.Fatalf("doctor: exit code %d\n%s", code, said)
	}
	cmd := program(t, s.dir, "run", "-c", "backstory.yaml")
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the process
	testenv.Eventually(t, 60*time.Second, func() error {
		code, said := outcome(t, s.dir, "status", "-c", "backstory.yaml")
		if code != 0 || !strings.Contains(said, "streaming since") || !strings.Contains(said, "done, 1 rows") {
			return fmt.Errorf("status: exit code %d: %s", code, said)
		}
		return nil
	})
	code, said := outcome(t, s.dir, "tail", "-c", "backstory.yaml", "Product", "--from=start", "--follow=false")
	if want := `(?s)product\.events +1 +v1 +ProductImported +id 1, sku A-1, price 19\.90, stock 4\n.*product\.latest +1 +v1 +state`; code != 0 || !regexp.MustCompile(want).MatchString(said) {
		t.Errorf("tail: exit code %d, want %s in:\n%s", code, want, said)
	}
	code, said = outcome(t, s.dir, "tail", "-c", "backstory.yaml", "product.latest", "--from=start", "--follow=false", "--json", "--key=1")
	if !strings.Contains(said, `"type":"ProductState.v1","key":"1","version":1`) || code != 0 {
		t.Errorf("tail --json: exit code %d:\n%s", code, said)
	}
	code, said = outcome(t, s.dir, "tail", "--brokers", s.broker, "no.such.topic", "--from=start")
	if code != 3 || !strings.Contains(said, "no.such.topic") {
		t.Errorf("tail of a topic that is not there: exit code %d:\n%s", code, said)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, log.String())
	}
}
