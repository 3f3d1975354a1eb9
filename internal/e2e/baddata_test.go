package e2e_test

import (
	encoding "encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"backstory/internal/e2e/audit"
	"backstory/internal/testenv"
)

// narrow makes both topics with a limit of 20 kB.
func (r *rig) narrow() {
	r.tb.Helper()
	p := r.start()
	p.drained(time.Minute)
	p.stop()
	configured(0, "max.message.bytes", "20000")(r)
	configured(1, "max.message.bytes", "20000")(r)
}

// grow gives a product a description that no codec gets into 20 kB.
const grow = `UPDATE products SET description = (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 4000)) WHERE id = 2`

// A record that is too large for its topic stops the bridge before anything above
// it is confirmed, as often as it is started; with a higher limit all arrives.
func TestRecordTooLarge(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 20)
	r.narrow()
	r.exec(`UPDATE products SET stock = 7 WHERE id < 10`)
	before := r.walEnd()
	r.exec(grow)
	r.exec(`UPDATE products SET stock = 8`)
	for range 2 {
		r.fails(refusedCode, "topic "+r.topics[0], `the record of Product "2", version`, "max.message.bytes is 20000",
			"kafka-configs --alter --topic "+r.topics[0]+" --add-config max.message.bytes=", "kafka.dead_letter_topic")
		if confirmed := r.confirmed(); confirmed > before {
			t.Fatalf("confirmed %s, above %s, where the record was not yet", confirmed, before)
		}
	}
	configured(0, "max.message.bytes", "1000000")(r)
	r.fails(refusedCode, "topic "+r.topics[1]) // the state is as large as the event
	configured(1, "max.message.bytes", "1000000")(r)
	p := r.start()
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// With a dead-letter topic the bridge goes on: a stand-in with the same version
// takes the place of the record, which stands in full where ce_dataref points,
// also for a bridge that has lost its state.
func TestRecordTooLargeIsParked(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 20)
	r.narrow()
	r.edit("backstory.yaml", "kafka: {", "kafka: {dead_letter_topic: "+r.slot()+".dead, ")
	p := r.start()
	p.streaming()
	r.exec(grow)
	r.exec(`UPDATE products SET stock = 8`)
	p.drained(time.Minute)
	p.stop()
	r.compareParked(2) // the growth in both topics; latest may hold it again with the new stock
	if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil {
		t.Fatal(err)
	}
	p = r.start()
	p.drained(time.Minute)
	r.exec(`UPDATE products SET stock = 9`)
	p.drained(time.Minute)
	p.stop()
	r.compareParked(3)
}

// compareParked is compare with every stand-in replaced by what it stands for.
func (r *rig) compareParked(least int) {
	r.tb.Helper()
	dead := map[string]audit.Record{}
	for _, d := range r.records(r.slot() + ".dead") {
		dead[fmt.Sprintf("kafka:%s.dead/%d/%d", r.slot(), d.Partition, d.Offset)] = d
	}
	found := 0
	whole := func(topic string) []audit.Record {
		records := r.records(topic)
		for i := range records {
			ref, ok := records[i].Headers["ce_dataref"]
			if !ok {
				continue
			}
			found++
			d, ok := dead[ref]
			if !ok || d.Key != records[i].Key || d.Headers["ce_id"] != records[i].Headers["ce_id"] || string(records[i].Value) != "{}" {
				r.tb.Fatalf("%s, key %s: %q points to %s, which is %v", topic, records[i].Key, records[i].Value, ref, d)
			}
			records[i].Value = d.Value
		}
		return records
	}
	history, _, err := audit.ReadHistory(r.tb.Context(), r.connect(), true)
	if err != nil {
		r.tb.Fatal(err)
	}
	report := audit.Compare(history, whole(r.topics[0]), whole(r.topics[1]), 6)
	if report.Wrong > 0 {
		r.tb.Fatalf("%s", report)
	}
	if found < least {
		r.tb.Errorf("%d stand-ins, want at least %d", found, least)
	}
}

// walEnd is the end of WAL, confirmed what the slot has as durable.
func (r *rig) walEnd() pglogrepl.LSN { return r.lsn(`SELECT pg_current_wal_lsn()::text`) }

func (r *rig) confirmed() pglogrepl.LSN {
	return r.lsn(`SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '` + r.slot() + `'`)
}

func (r *rig) lsn(sql string) pglogrepl.LSN {
	r.tb.Helper()
	var text string
	if err := r.connect().QueryRow(r.tb.Context(), sql).Scan(&text); err != nil {
		r.tb.Fatal(err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		r.tb.Fatal(err)
	}
	return lsn
}

// garbler is a proxy before Postgres that spoils one byte of the stream: the kind
// of the first tuple of an UPDATE after it was armed.
type garbler struct {
	target string
	armed  atomic.Bool
}

// serve takes connections until the listener is closed.
func (g *garbler) serve(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", g.target)
		if err != nil {
			_ = client.Close() // the bridge sees that
			continue
		}
		go func() { // ends with the client
			_, _ = io.Copy(server, client)
			_ = server.Close()
		}()
		go func() { // ends with the server
			_ = g.pass(client, server)
			_ = client.Close()
		}()
	}
}

// pass hands the server's messages on, each a kind, a length and a body.
func (g *garbler) pass(client io.Writer, server io.Reader) error {
	const update = 25 // in a CopyData of WAL: 'w', two positions and a time before it
	for {
		var head [5]byte
		if _, err := io.ReadFull(server, head[:]); err != nil {
			return err
		}
		body := make([]byte, encoding.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(server, body); err != nil {
			return err
		}
		if head[0] == 'd' && len(body) > update+6 && body[0] == 'w' && body[update] == 'U' && g.armed.CompareAndSwap(true, false) {
			body[update+5] = '?'
		}
		if _, err := client.Write(append(head[:], body...)); err != nil {
			return err
		}
	}
}

// A message that cannot be decoded stops the bridge with its place; nothing
// above it is confirmed, and the next start reads it anew.
func TestUndecodableMessage(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	r := newRig(t, pg, testenv.Kafka(t).Brokers(), 20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the test is over
	g := &garbler{target: pg.Addr()}
	go g.serve(l) // ends with the listener
	r.edit("backstory.yaml", pg.Addr(), l.Addr().String())
	p := r.start()
	p.streaming()
	r.commit(1, 200, 40, false, 0)
	p.drained(time.Minute)
	p.stop()
	r.exec(`INSERT INTO products (id, stock) VALUES (5000, 1)`)
	before := r.walEnd()
	r.exec(`UPDATE products SET stock = 9 WHERE id < 10`)
	g.armed.Store(true)
	r.fails(failedCode, "read the stream", `decode pgoutput message 'U' at `, "start again")
	if confirmed := r.confirmed(); confirmed > before {
		t.Fatalf("confirmed %s, above %s, where the message was not yet", confirmed, before)
	}
	p = r.start()
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// What an application says wrongly of its changes becomes the reason as text; it
// neither stops the bridge nor is it lost.
func TestMalformedContext(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	r := newRig(t, pg, testenv.Kafka(t).Brokers(), 20)
	if major := r.serverVersion(); major < 140000 {
		t.Skipf("testenv: Postgres %d has no messages in its stream", major)
	}
	p := r.start()
	p.streaming()
	for i, message := range []struct{ said, heard string }{
		{`spring sale`, `spring sale`},
		{`{"reason": "spring`, `{"reason": "spring`},
		{`["a", 1]`, `["a", 1]`},
		{`"text"`, `"text"`},
		{`42`, `42`},
		{`{"raison": "misspelt"}`, ``},
		{"  ", ``},
		{"\xff\xfe{", "\uFFFD{"},
		{strings.Repeat("long ", 50_000), strings.Repeat("long ", 50_000)},
	} {
		r.say([]byte(message.said), message.heard, `UPDATE products SET stock = $1 WHERE id < 5`, 1000+i)
	}
	p.drained(time.Minute)
	p.stop()
	r.compare()
}

// say runs a statement in a transaction that gives a context; the audit notes
// the reason that must arrive.
func (r *rig) say(message []byte, heard, sql string, args ...any) {
	r.tb.Helper()
	ctx := r.tb.Context()
	err := pgx.BeginFunc(ctx, r.connect(), func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('audit.reason', $1, true), pg_logical_emit_message(true, 'backstory.context', $2::bytea)`, heard, message); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
	if err != nil {
		r.tb.Fatal(err)
	}
}

func (r *rig) serverVersion() int {
	r.tb.Helper()
	var text string
	if err := r.connect().QueryRow(r.tb.Context(), `SHOW server_version_num`).Scan(&text); err != nil {
		r.tb.Fatal(err)
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		r.tb.Fatal(err)
	}
	return n
}
