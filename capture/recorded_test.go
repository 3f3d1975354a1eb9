package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"backstory/internal/testenv"
)

// -update records testdata/*.wal anew from a real server, and writes what is
// decoded from it beside it.
var update = flag.Bool("update", false, "record testdata anew from a real Postgres")

// recordings are statements whose WAL is recorded: CopyData messages, each behind
// its length. Tables products and full are mapped, other is only published.
var recordings = []struct {
	name string
	sql  []string
}{
	{"rows", []string{
		"INSERT INTO products VALUES (1, 'pen', 1.50, NULL), (2, '', 'NaN', 'Zürich'), (3, 'x', 0.10, 'y')",
		"UPDATE products SET price = 2 WHERE id = 1",
		"UPDATE products SET id = 10 WHERE id = 1",
		"DELETE FROM products WHERE id = 2",
		"BEGIN; INSERT INTO other VALUES (1); DELETE FROM products; DELETE FROM other; COMMIT",
	}},
	{"full", []string{
		"INSERT INTO \"full\" VALUES (1, NULL, 'a'), (2, 'x', NULL)",
		"UPDATE \"full\" SET name = 'n' WHERE id = 1",
		"UPDATE \"full\" SET id = 3 WHERE id = 2",
		"DELETE FROM \"full\"",
	}},
	{"toast", []string{
		"ALTER TABLE products ALTER note SET STORAGE EXTERNAL; ALTER TABLE \"full\" ALTER note SET STORAGE EXTERNAL",
		"INSERT INTO products VALUES (1, 'a', 1, repeat('toast ', 500)); INSERT INTO \"full\" VALUES (1, 'a', repeat('toast ', 500))",
		"UPDATE products SET name = 'b'; UPDATE \"full\" SET name = 'b'",
		"UPDATE products SET note = repeat('other ', 500)",
	}},
	{"schema", []string{
		"BEGIN; INSERT INTO products VALUES (1, 'a', 1, 'n'); ALTER TABLE products ADD stock int DEFAULT 5; UPDATE products SET name = 'b'; " +
			"ALTER TABLE products DROP note; UPDATE products SET name = 'c'; ALTER TABLE products RENAME name TO title; " +
			"ALTER TABLE products ALTER stock TYPE text; UPDATE products SET title = 'd'; COMMIT",
		"ALTER TABLE products REPLICA IDENTITY FULL; UPDATE products SET stock = NULL",
	}},
	{"savepoints", []string{
		"BEGIN; INSERT INTO products VALUES (1); SAVEPOINT a; INSERT INTO products VALUES (2); SAVEPOINT b; INSERT INTO products VALUES (3); " +
			"ROLLBACK TO b; INSERT INTO products VALUES (4); RELEASE a; INSERT INTO products VALUES (5); COMMIT",
		"BEGIN; INSERT INTO products VALUES (6); ROLLBACK",
		"BEGIN; INSERT INTO other VALUES (1); SAVEPOINT a; INSERT INTO products VALUES (7); ROLLBACK TO a; COMMIT",
	}},
	{"truncate", []string{
		"INSERT INTO products VALUES (1); INSERT INTO other VALUES (1)",
		"BEGIN; INSERT INTO products VALUES (2); TRUNCATE other, products, \"full\"; INSERT INTO products VALUES (3); COMMIT",
		"TRUNCATE other",
	}},
	{"messages", []string{
		"BEGIN; INSERT INTO products VALUES (1); SELECT pg_logical_emit_message(true, 'backstory.context', '{\"reason\":\"sale\",\"actor\":\"ann\"}'); " +
			"INSERT INTO products VALUES (2); SELECT pg_logical_emit_message(true, 'other', 'x'); " +
			"SELECT pg_logical_emit_message(true, 'backstory.context', '{}'); INSERT INTO products VALUES (3); COMMIT",
		"SELECT pg_logical_emit_message(false, 'backstory.watermark', '')",
		"BEGIN; INSERT INTO products VALUES (4); SAVEPOINT a; SELECT pg_logical_emit_message(true, 'backstory.context', 'rolled back'); ROLLBACK TO a; COMMIT",
		"SELECT pg_logical_emit_message(true, 'backstory.context', '\\xff00'::bytea)",
	}},
	{"types", []string{
		"CREATE DOMAIN cents AS int8; CREATE DOMAIN tag AS cents; CREATE DOMAIN words AS text[]",
		"ALTER TABLE products ADD cents tag, ADD words words, ADD at timestamptz, ADD raw bytea, ADD f float8, ADD span interval, ADD nums numeric[], ADD doc jsonb",
		"INSERT INTO products VALUES (1, 'a', 1, 'n', 5, '{a,NULL,\"b c\"}', '2024-02-29 12:00:00.5+02', '\\xdeadbeef', 1.0/3, '1 year 2 days 3 hours', '{{1,2},{3,NULL}}', '{\"a\": [1, 2.50]}')",
	}},
}

func TestRecorded(t *testing.T) {
	t.Parallel()
	for _, r := range recordings {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if *update {
				write(t, r.name+".wal", record(t, r.sql))
			}
			got := replay(t, frames(t, r.name))
			if *update {
				write(t, r.name+".txt", []byte(got))
			}
			if diff := cmp.Diff(string(read(t, r.name+".txt")), got); diff != "" {
				t.Errorf("changes (-recorded +got):\n%s", diff)
			}
		})
	}
}

// Cut short or lengthened by a byte, no message may pass.
func TestDecoderIsStrict(t *testing.T) {
	t.Parallel()
	for _, r := range recordings {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			var before [][]byte // what has to come first, so that the message makes sense
			for _, data := range pgoutputOf(t, frames(t, r.name)) {
				for n := range len(data) {
					rejects(t, before, data[:n])
				}
				rejects(t, before, append(slices.Clone(data), 0))
				before = append(before, data)
			}
		})
	}
}

func rejects(t *testing.T, before [][]byte, data []byte) {
	t.Helper()
	a := recordedAssembler()
	for _, m := range before {
		if err := a.message(t.Context(), 1, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.message(t.Context(), 1, data); err == nil {
		t.Fatalf("message %q was accepted", data)
	}
}

func recordedAssembler() *assembler {
	tables := []TableRef{{Schema: "public", Name: "products"}, {Schema: "public", Name: "full"}}
	return newAssembler(newRelations(tables, catalog{}, noTypes), 4<<20, 0)
}

// record runs statements on a real server and returns what its walsender says of
// them.
func record(t *testing.T, sql []string) []byte {
	pg := testenv.Postgres(t)
	cfg := DefaultConfig()
	cfg.DSN = pg.Database(t)
	pg.Exec(t, cfg.DSN, `CREATE TABLE products (id int PRIMARY KEY, name text, price numeric, note text);
		CREATE TABLE "full" (id int PRIMARY KEY, name text, note text); ALTER TABLE "full" REPLICA IDENTITY FULL;
		CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION backstory FOR TABLE products, "full", other`)
	cfg.Slot = fmt.Sprintf("recorder_%d", time.Now().UnixNano())
	pg.Exec(t, cfg.DSN, "SELECT pg_create_logical_replication_slot('"+cfg.Slot+"', 'pgoutput')")
	pg.Exec(t, cfg.DSN, sql...)
	db, err := NewDatabase(cfg, nil, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	status, err := db.SlotStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := db.openSession(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.wire.conn.Close()
	if err := s.wire.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var recorded []byte
	for {
		kind, body, err := s.wire.receive()
		if err != nil {
			t.Fatal(err)
		}
		s.wire.skip(body)
		if kind != wireCopyData {
			t.Fatalf("unexpected message %q", kind)
		}
		recorded = binary.BigEndian.AppendUint32(recorded, uint32(len(body)))
		recorded = append(recorded, body...)
		if body[0] != streamKeepalive {
			continue
		}
		if k, err := decodeKeepalive(body[1:]); err != nil || k.walEnd >= status.Current {
			return recorded
		}
	}
}

// frames reads a recording.
func frames(tb testing.TB, name string) [][]byte {
	tb.Helper()
	r := bytes.NewReader(read(tb, name+".wal"))
	var all [][]byte
	for r.Len() > 0 {
		var size uint32
		if err := binary.Read(r, binary.BigEndian, &size); err != nil {
			tb.Fatal(err)
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(r, frame); err != nil {
			tb.Fatal(err)
		}
		all = append(all, frame)
	}
	return all
}

// pgoutputOf returns the messages of the plugin in a recording.
func pgoutputOf(tb testing.TB, frames [][]byte) (msgs [][]byte) {
	tb.Helper()
	for _, frame := range frames {
		if frame[0] != streamData {
			continue
		}
		m, err := decodeXLogData(frame[1:])
		if err != nil {
			tb.Fatal(err)
		}
		msgs = append(msgs, m.data)
	}
	return msgs
}

// replay describes what is decoded from a recording.
func replay(t *testing.T, frames [][]byte) string {
	t.Helper()
	a := recordedAssembler()
	for _, m := range pgoutputOf(t, frames) {
		if err := a.message(context.Background(), 0, m); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	var last *Relation
	for _, c := range a.batch().Changes {
		if c.Relation != last {
			last = c.Relation
			fmt.Fprintf(&b, "%s.%s identity %c:", last.Schema, last.Name, last.Identity)
			for _, column := range last.Columns {
				fmt.Fprintf(&b, " %s", column.Name)
				if column.Key {
					b.WriteString(" (key)")
				}
				if column.Elem != 0 {
					fmt.Fprintf(&b, " array of %d", column.Elem)
				} else {
					fmt.Fprintf(&b, " %d", column.Base)
				}
				b.WriteByte(',')
			}
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s xid %d: %s\n", c.Pos, c.XID, c.Op)
		values(&b, "new", &c, c.New)
		values(&b, map[bool]string{true: "old", false: "key"}[c.OldFull], &c, c.Old)
		if c.Context != nil {
			fmt.Fprintf(&b, "  context: %s %q\n", c.Context.Reason, c.Context.Actor)
		}
	}
	fmt.Fprintf(&b, "reached %s, end %s\n", a.batch().Reached, a.batch().End)
	return b.String()
}

func values(b *strings.Builder, title string, c *Change, values []Value) {
	if len(values) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:", title)
	for i, v := range values {
		switch v.Kind {
		case Text:
			fmt.Fprintf(b, " %s=%.60q", c.Relation.Columns[i].Name, v.Data)
		case Null:
			fmt.Fprintf(b, " %s=null", c.Relation.Columns[i].Name)
		case Unchanged:
			fmt.Fprintf(b, " %s=unchanged", c.Relation.Columns[i].Name)
		}
	}
	b.WriteByte('\n')
}

func read(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// FuzzAssembler feeds messages, each behind a length of two bytes, and checks
// that whatever comes is taken or refused, and that positions are in order.
func FuzzAssembler(f *testing.F) {
	for _, r := range recordings {
		var seed []byte
		for _, m := range pgoutputOf(f, frames(f, r.name)) {
			if len(m) <= 0xffff {
				seed = append(binary.BigEndian.AppendUint16(seed, uint16(len(m))), m...)
			}
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a := recordedAssembler()
		a.rels.resolve = func(context.Context, []uint32) (map[uint32]ColumnType, error) { return nil, nil }
		var before Position
		for len(data) >= 2 {
			n := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			if err := a.message(context.Background(), 0, data[2:2+n]); err != nil {
				return
			}
			data = data[2+n:]
			for _, c := range a.batch().Changes {
				if len(c.New) != len(c.Relation.Columns) && (c.Op == OpInsert || c.Op == OpUpdate) {
					t.Fatalf("%s: got %d values, want %d", c.Pos, len(c.New), len(c.Relation.Columns))
				}
				if c.Pos.Index == 0 || c.Pos.LSN == before.LSN && c.Pos.Index <= before.Index {
					t.Fatalf("position %s after %s", c.Pos, before)
				}
				before = c.Pos
			}
			before = Position{}
			a.next()
		}
	})
}

// FuzzWire feeds the connection's bytes in pieces.
func FuzzWire(f *testing.F) {
	f.Add([]byte("d\x00\x00\x00\x05kE\x00\x00\x00\x04"), uint8(1))
	f.Add([]byte("d\xff\xff\xff\xff"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, piece uint8) {
		w := newWire(&piecewise{data: slices.Clone(data), piece: max(1, int(piece))})
		var got []byte
		for {
			kind, body, err := w.receive()
			if err != nil {
				break
			}
			got = append(binary.BigEndian.AppendUint32(append(got, kind), uint32(len(body)+4)), body...)
			w.skip(body)
		}
		if !bytes.HasPrefix(data, got) {
			t.Errorf("got %q, which is not the beginning of %q", got, data)
		}
	})
}

// BenchmarkDecode is the cost of one change, from the bytes of the connection
// to the batch.
func BenchmarkDecode(b *testing.B) {
	row := insertMsg(mappedID, "1234567", strings.Repeat("n", 40), "19.90", "2024-02-29 12:00:00.123456+00", strings.Repeat("d", 200), "NULL", "42", "t")
	msgs := [][]byte{beginMsg(10, 1)}
	for range 100 {
		msgs = append(msgs, row)
	}
	msgs = append(msgs, commitMsg(10, 20))
	var stream []byte
	for _, m := range msgs {
		stream = append(stream, wireCopyData)
		stream = binary.BigEndian.AppendUint32(stream, uint32(4+25+len(m)))
		stream = append(stream, streamData)
		stream = append(stream, make([]byte, 24)...)
		stream = append(stream, m...)
	}
	rels := newRelations([]TableRef{{Schema: "public", Name: "products"}}, catalog{}, noTypes)
	s := &Stream{asm: newAssembler(rels, 4<<20, 0), wire: newWire(&piecewise{data: stream, piece: len(stream), again: true})}
	if err := s.asm.message(b.Context(), 0, relationMsg(mappedID, "public", "products", "a", "b", "c", "d", "e", "f", "g", "h")); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(row)))
	for changes := 0; changes < b.N; changes += len(s.asm.batch().Changes) {
		s.asm.next()
		for !s.asm.full() {
			if err := s.consume(b.Context()); err != nil {
				b.Fatal(err)
			}
			if err := s.wire.read(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
