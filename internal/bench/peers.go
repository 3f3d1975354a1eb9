package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"backstory/internal/cache"
	"backstory/internal/child"
)

// peersPOM names what Maven fetches.
//
//go:embed peers/pom.xml
var peersPOM []byte

// peersEntry is where it is in the cache; it changes with the versions in the pom.
const peersEntry = "bench/debezium-3.7.0.Final-connect-4.1.0"

// peer is Debezium with one set of settings.
type peer struct {
	name      string
	connector map[string]string // beside what every peer has
	worker    map[string]string
}

// peers are Debezium as it comes, and with settings that make it fast: large
// batches, a queue that holds four of them, no pause between polls, and a producer
// that compresses and waits for its batches to fill.
var peers = []peer{
	{name: "debezium"},
	{
		name: "debezium_tuned",
		connector: map[string]string{
			"max.batch.size": "20480", "max.queue.size": "81920", "poll.interval.ms": "5",
			"producer.override.compression.type": "lz4", "producer.override.linger.ms": "5",
			"producer.override.batch.size": "1048576", "producer.override.buffer.memory": "134217728",
		},
		worker: map[string]string{"connector.client.config.override.policy": "All"},
	},
}

func peersCommand(c *common) *cobra.Command {
	var rows, changes int
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "Catch-up of Debezium 3.7, beside the bridge and pg_recvlogical",
		Long: `Let the bridge, Debezium as it comes and Debezium tuned read the same backlog, each
from a slot of its own. Debezium runs in Kafka Connect standalone and publishes one
record a change, the bridge two. Needs Maven (mvn), which fetches 150 MB once.`,
		Example: "  go run ./internal/bench peers --rows 1000000 --changes 1000000 --runs 5",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.measure(cmd, func(l *lab, r *report) error { return l.peers(r, c.runs, rows, changes) })
		},
	}
	cmd.Flags().IntVar(&rows, "rows", 200_000, "rows of the table")
	cmd.Flags().IntVar(&changes, "changes", 200_000, "updates of one backlog, at most rows")
	return cmd
}

func (l *lab) peers(r *report, runs, rows, changes int) error {
	jars, err := fetchPeers(l.ctx())
	if err != nil {
		return err
	}
	if err := l.products(rows); err != nil {
		return err
	}
	if err := l.exec("CREATE PUBLICATION " + publication + " FOR TABLE products"); err != nil {
		return err
	}
	var connects []*connect
	for _, p := range peers {
		c, err := l.newConnect(p, jars)
		if err == nil {
			err = c.prime()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		connects = append(connects, c)
	}
	rig, err := l.newRig("peers") // last: its slot must not have what primed the others
	if err != nil {
		return err
	}
	if err := rig.prime(); err != nil {
		return err
	}
	skip := 0
	for range runs {
		for _, s := range shapes {
			log, err := l.writeBacklog(changes, s.sizeOf(changes), rows, skip)
			if err != nil {
				return err
			}
			skip += changes
			if err := rig.beside(r, s, log, connects); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	r.note("%d changes a run over TCP. The bridge's figures begin when it streams, Debezium's with its first record.", changes)
	return nil
}

// beside lets everybody read one backlog.
func (r *rig) beside(rep *report, s shape, log backlog, connects []*connect) error {
	limit, err := r.limit(tcp, log.end)
	if err != nil {
		return err
	}
	d, err := r.drain(tcp, log)
	if err != nil {
		return err
	}
	add := func(name string, d drained, changes int) {
		n := float64(changes)
		row := rep.row(s.name + ", " + name)
		row.add("changes/s", n/d.seconds)
		row.add("ratio", limit.seconds/float64(log.changes)*n/d.seconds)
		row.add("CPU µs", d.usage.bridge/n*1e6)
		row.add("peak MB", d.memory.peak)
		row.add("foreign cores", d.foreign)
		r.l.logf("%s, %s: %.0f changes/s, %.1f µs, %.0f MB", s.name, name, n/d.seconds, d.usage.bridge/n*1e6, d.memory.peak)
	}
	add("bridge", d, log.changes)
	for _, c := range connects {
		d, changes, err := c.drain(log)
		if err != nil {
			return fmt.Errorf("%s: %w", c.peer.name, err)
		}
		add(c.peer.name, d, changes)
	}
	return nil
}

// fetchPeers returns the directory with lib and plugins.
func fetchPeers(ctx context.Context) (string, error) {
	c, err := cache.Open()
	if err != nil {
		return "", err
	}
	return c.Once(ctx, peersEntry, func(ctx context.Context, tmp string) error {
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tmp, "pom.xml"), peersPOM, 0o644); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "package")
		cmd.Dir = tmp
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("mvn package (Maven is needed to fetch Debezium): %w: %s", err, out)
		}
		return nil
	})
}

// connect is Kafka Connect standalone with one connector.
type connect struct {
	l     *lab
	peer  peer
	jars  string
	dir   string
	topic string
	proc  *child.Process
}

// newConnect writes the files of a peer and makes its topic.
func (l *lab) newConnect(p peer, jars string) (*connect, error) {
	c := &connect{l: l, peer: p, jars: jars, dir: filepath.Join(l.dir, p.name), topic: p.name + ".public.products"}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, err
	}
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	host, port, err := l.host(tcp)
	if err != nil {
		return nil, err
	}
	connector := map[string]string{
		"name": p.name, "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1",
		"plugin.name": "pgoutput", "database.hostname": host, "database.port": port, "database.user": "postgres",
		"database.password": "postgres", "database.dbname": database, "topic.prefix": p.name, "slot.name": p.name,
		"publication.name": publication, "publication.autocreate.mode": "disabled",
		"table.include.list": "public.products", "snapshot.mode": "no_data",
		"message.prefix.exclude.list": ".*", // the watermarks of the bridge's import
	}
	worker := map[string]string{
		"bootstrap.servers": strings.Join(l.kafka.Brokers(), ","), "listeners": fmt.Sprintf("HTTP://127.0.0.1:%d", ports[0]),
		"key.converter":                "org.apache.kafka.connect.json.JsonConverter",
		"value.converter":              "org.apache.kafka.connect.json.JsonConverter",
		"key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false",
		"offset.storage.file.filename": filepath.Join(c.dir, "offsets"), "plugin.path": filepath.Join(jars, "plugins"),
	}
	const log = "appender.c.type=Console\nappender.c.name=c\nappender.c.layout.type=PatternLayout\n" +
		"appender.c.layout.pattern=%d %p %c{1} %m%n\nrootLogger.level=warn\nrootLogger.appenderRef.c.ref=c\n"
	if err := errors.Join(
		writeProperties(filepath.Join(c.dir, "connector.properties"), connector, p.connector),
		writeProperties(filepath.Join(c.dir, "worker.properties"), worker, p.worker),
		os.WriteFile(filepath.Join(c.dir, "log4j2.properties"), []byte(log), 0o644),
	); err != nil {
		return nil, err
	}
	_, err = l.admin.CreateTopic(l.ctx(), 6, 1, nil, c.topic)
	return c, err
}

func writeProperties(path string, sets ...map[string]string) error {
	var lines []string
	for _, set := range sets {
		for name, value := range set {
			lines = append(lines, name+"="+value+"\n")
		}
	}
	slices.Sort(lines)
	return os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644)
}

// start runs Connect with the memory and the collector of its own start script.
func (c *connect) start() error {
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own copy
	cmd := exec.Command("java", "-Xms256M", "-Xmx2G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
		"-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true",
		"-Dlog4j2.configurationFile="+filepath.Join(c.dir, "log4j2.properties"), "-cp", filepath.Join(c.jars, "lib", "*"),
		"org.apache.kafka.connect.cli.ConnectStandalone",
		filepath.Join(c.dir, "worker.properties"), filepath.Join(c.dir, "connector.properties"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, log, log
	c.proc, err = child.Start(cmd, nil, syscall.SIGKILL)
	if err != nil {
		return err
	}
	proc := c.proc
	c.l.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := proc.Kill(ctx); err != nil {
			c.l.tb.Errorf("end %s: %v", c.peer.name, err)
		}
	})
	return nil
}

// stop ends Connect by SIGTERM, at which it stores its offsets.
func (c *connect) stop() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.l.ctx()), stopLimit)
	defer cancel()
	if err := c.proc.Stop(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	const terminated = 128 + int(syscall.SIGTERM)
	var exit *exec.ExitError
	if err := c.proc.Err(); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != terminated) {
		return c.said(err)
	}
	return nil
}

func (c *connect) said(err error) error {
	text, _ := os.ReadFile(filepath.Join(c.dir, "log")) // what there is of it
	return fmt.Errorf("%s ended: %w: %s", c.peer.name, err, text[max(0, len(text)-3000):])
}

// prime starts Connect once, so that it has a slot and an offset, and stops it
// when it has read what was changed for it. The few changes of this are also in
// the slots of those that were primed before, whose first figures they are part of.
func (c *connect) prime() error {
	if err := c.start(); err != nil {
		return err
	}
	for range 120 {
		if err := c.l.exec("UPDATE products SET price = price + 0.01 WHERE id = 1"); err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-c.proc.Done():
			return c.said(errors.Join(errors.New("before its first record"), c.proc.Err()))
		}
		sums, err := c.l.sums(c.topic)
		if err != nil {
			return err
		}
		if sums[c.topic] > 0 {
			return c.stop()
		}
	}
	return c.said(errors.New("no record after two minutes"))
}

// drain starts Connect and lets it empty a backlog, from its first record to its
// last one. changes is what it published between the two.
func (c *connect) drain(log backlog) (d drained, changes int, err error) {
	before, err := c.l.sums(c.topic)
	if err != nil {
		return d, 0, err
	}
	if err := c.start(); err != nil {
		return d, 0, err
	}
	tick := time.NewTicker(pollEnds)
	defer tick.Stop()
	var first, last usage
	var firstSeen, seen int64
	for began := time.Now(); seen < int64(log.changes); {
		select {
		case <-tick.C:
		case <-c.proc.Done():
			return d, 0, c.said(errors.Join(fmt.Errorf("after %d changes of %d", seen, log.changes), c.proc.Err()))
		}
		sums, err := c.l.sums(c.topic)
		if err != nil {
			return d, 0, err
		}
		now := sums[c.topic] - before[c.topic]
		if now > seen {
			seen, began = now, time.Now()
			if last, err = c.l.usage(c.proc.PID()); err != nil {
				return d, 0, err
			}
			if firstSeen == 0 {
				first, firstSeen = last, now
			}
		}
		if time.Since(began) > 3*stalled {
			return d, 0, c.said(fmt.Errorf("%d changes of %d, and no more", seen, log.changes))
		}
	}
	d.usage, d.seconds = last.since(first), last.at.Sub(first.at).Seconds()
	d.foreign = d.usage.foreign(last.at.Sub(first.at))
	if d.memory, err = memoryOf(c.proc.PID()); err != nil {
		return d, 0, err
	}
	return d, int(seen - firstSeen), c.stop()
}
