package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/internal/child"
	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

const (
	slot        = "chaos"
	eventsTopic = "product.events"
	latestTopic = "product.latest"
)

// config is that of an instance. Everything is small and fast, so that a short
// run goes through many pieces, segments, chunks, syncs and renewals.
const config = `
source: {dsn: %q, slot: %s, publication: backstory, batch_bytes: 64KiB}
kafka: {brokers: [%s], request_timeout: 2s}
state: {dir: %q, segment_bytes: 1MiB}
backfill: {chunk_rows: 200}
bridge: {piece_events: 200, piece_bytes: 64KiB, sync_interval: 50ms, stop_timeout: 10s, startup_timeout: %s, renew_interval: 1m}
http: {listen: %q}
mapping: products.yaml
`

// startupTimeout is how long a start waits for servers before it ends with 1.
const startupTimeout = 8 * time.Second

// newWorld makes the table, the program, and two instances that do not run yet.
func newWorld(ctx context.Context, o options, s servers) (*world, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, err
	}
	o.dir = dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	journal, err := os.Create(filepath.Join(dir, "journal.log"))
	if err != nil {
		return nil, err
	}
	w := &world{options: o, servers: s, rng: rand.New(rand.NewPCG(o.seed, 0)), journal: journal, begun: time.Now(),
		program: filepath.Join(dir, "backstory"), counts: map[string]int{}, fails: make(chan error, 10)}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", w.program, "backstory/cmd/backstory").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the bridge: %w\n%s", err, out)
	}
	if err := w.table(ctx); err != nil {
		return nil, err
	}
	mapping := fmt.Sprintf(audit.Mapping, min(s.brokers, 3))
	if err := os.WriteFile(filepath.Join(dir, "products.yaml"), []byte(mapping), 0o644); err != nil {
		return nil, err
	}
	w.disk = mountDisk(filepath.Join(dir, "disk"))
	// The second instance goes past the proxies of Kafka, so that what these hold
	// back of the first one can land after the second has taken over.
	for i, brokers := range [][]string{s.kafka.Brokers(), s.kafka.Internal()} {
		if w.fleet[i], err = w.newInstance(string(rune('a'+i)), s.links[i], brokers); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) table(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return audit.Install(ctx, conn, w.rows)
}

func (w *world) newInstance(name string, link *testenv.Link, brokers []string) (*instance, error) {
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	i := &instance{w: w, name: name, link: link, http: fmt.Sprintf("127.0.0.1:%d", ports[0]),
		state: filepath.Join(w.disk.dir, name), config: filepath.Join(w.dir, name+".yaml"), wake: make(chan struct{}, 1)}
	dsn := strings.Replace(w.pg.DSN("postgres"), w.pg.Addr(), link.Addr(), 1)
	text := fmt.Sprintf(config, dsn, slot, quoteList(brokers), i.state, startupTimeout, i.http)
	return i, os.WriteFile(i.config, []byte(text), 0o644)
}
