package capture_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/testenv"
)

// readAll reads a table in chunks of the given size and returns the keys in the
// order in which they came.
func readAll(t *testing.T, r *capture.Reader, limit int) (keys [][]string) {
	t.Helper()
	var after []string
	var last capture.LSN
	for {
		chunk, err := r.Chunk(t.Context(), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if chunk.Watermark <= last {
			t.Errorf("watermark %s after %s", chunk.Watermark, last)
		}
		last = chunk.Watermark
		for i, c := range chunk.Changes {
			if want := (capture.Position{LSN: last, Kind: capture.KindBackfill, Index: uint32(i + 1)}); c.Pos != want || c.Op != capture.OpRead {
				t.Errorf("row %d: got %s at %s, want a read at %s", i, c.Op, c.Pos, want)
			}
			keys = append(keys, keyOf(&c))
		}
		if chunk.Last != nil {
			after = chunk.Last
		}
		done := chunk.Done
		chunk.Release()
		if done {
			return keys
		}
	}
}

func keyOf(c *capture.Change) []string {
	var key []string
	for i, column := range c.Relation.Columns {
		if column.Key {
			key = append(key, string(c.New[i].Data))
		}
	}
	return key
}

// Whatever type, collation or number of columns a key has, chunks of any size
// hand out each row once, and a look-up finds each row by the key that a chunk
// printed.
func TestChunksOfAnyKey(t *testing.T) {
	t.Parallel()
	const letters = `SELECT chr(97 + i % 26) || CASE i % 3 WHEN 0 THEN '' WHEN 1 THEN '-' ELSE upper(chr(97 + i / 26)) END || i FROM generate_series(0, 199) i`
	tests := []struct {
		name, before, columns, after, rows string
		key                                []string
	}{
		{name: "text, byte order", columns: `k text COLLATE "C" PRIMARY KEY`, rows: letters},
		{name: "text, a language's order", columns: `k text COLLATE "en-x-icu" PRIMARY KEY`, rows: letters},
		{name: "text, no letter case", columns: `k text COLLATE any_case PRIMARY KEY`, rows: letters,
			before: `CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`},
		{name: "citext", columns: `k "my ""ext'".citext PRIMARY KEY`, rows: `SELECT k::citext FROM (` + letters + `) x(k)`,
			before: `CREATE SCHEMA "my ""ext'"; CREATE EXTENSION citext SCHEMA "my ""ext'"; ALTER DATABASE $db SET search_path = public, "my ""ext'"`},
		{name: "citext before a number", columns: `a my.citext, b int, PRIMARY KEY (a, b)`, before: citextInMy,
			rows: `SELECT 'x' || i % 10, i / 10 FROM generate_series(0, 199) i`},
		{name: "citext behind a number", columns: `a my.citext, b int, PRIMARY KEY (b, a)`, before: citextInMy,
			rows: `SELECT 'x' || i % 10, i / 10 FROM generate_series(0, 199) i`},
		{name: "citext between two others", columns: `a date, b my.citext, c uuid, PRIMARY KEY (a, b, c)`, before: citextInMy,
			rows: `SELECT date '2026-01-01' + i % 3, 'X' || i / 3 % 5, md5(i::text)::uuid FROM generate_series(0, 199) i`},
		{name: "citext twice", columns: `a my.citext, b my.citext, PRIMARY KEY (a, b)`, before: citextInMy,
			rows: `SELECT 'x' || i % 10, 'Y' || i / 10 FROM generate_series(0, 199) i`},
		{name: "a type whose operators have other names", columns: `k my.backwards PRIMARY KEY`, before: backwards,
			rows: `SELECT ('x' || i)::my.backwards FROM generate_series(0, 99) i`},
		{name: "columns named as the statements name things", columns: `k0 int, k1 text, asked int, PRIMARY KEY (k1, asked, k0)`,
			rows: `SELECT i, 'x' || i % 5, i % 7 FROM generate_series(0, 99) i`},
		{name: "domain", columns: `k code PRIMARY KEY`, rows: letters, before: `CREATE DOMAIN code AS varchar(20) CHECK (VALUE <> '')`},
		{name: "quotes and escapes", columns: `k text PRIMARY KEY`, rows: `SELECT E'\\''\t"\n\\N' || i FROM generate_series(1, 50) i UNION SELECT ''`},
		{name: "char", columns: `k char(8) PRIMARY KEY`, rows: letters},
		{name: "uuid", columns: `k uuid PRIMARY KEY`, rows: `SELECT md5(i::text)::uuid FROM generate_series(1, 200) i`},
		{name: "numeric", columns: `k numeric PRIMARY KEY`, rows: `SELECT (i - 50) * 0.1 FROM generate_series(1, 100) i UNION SELECT 'NaN' UNION SELECT 1e30`},
		{name: "float8", columns: `k float8 PRIMARY KEY`, rows: `SELECT (i - 50) / 3.0::float8 FROM generate_series(1, 100) i UNION SELECT 'NaN' UNION SELECT '-Infinity'`},
		{name: "timestamptz", columns: `k timestamptz PRIMARY KEY`, rows: `SELECT '2024-03-31 00:00:00.000001+01'::timestamptz + i * interval '17 min' FROM generate_series(1, 200) i UNION SELECT '-infinity' UNION SELECT '0044-03-15 BC'`},
		{name: "interval", columns: `k interval PRIMARY KEY`, rows: `SELECT i * interval '1 day 00:00:01' - interval '1 mon' FROM generate_series(1, 60) i`},
		{name: "bytea", columns: `k bytea PRIMARY KEY`, rows: `SELECT decode(md5(i::text), 'hex') FROM generate_series(1, 100) i UNION SELECT ''`},
		{name: "bit", columns: `k bit(9) PRIMARY KEY`, rows: `SELECT i::bit(9) FROM generate_series(1, 200) i`},
		{name: "enum", columns: `k size PRIMARY KEY`, rows: `SELECT unnest(enum_range(NULL::size))`, before: `CREATE TYPE size AS ENUM ('s', 'm', 'l', 'xl', 'b"c''d')`},
		{name: "array", columns: `k text[] PRIMARY KEY`, rows: `SELECT ARRAY[chr(97 + i % 7), NULL, 'x,"' || i] FROM generate_series(1, 60) i`},
		{name: "money", columns: `k money PRIMARY KEY`, rows: `SELECT ((i - 30) * 1234.56)::numeric::money FROM generate_series(1, 60) i`},
		{name: "inet", columns: `k inet PRIMARY KEY`, rows: `SELECT ('10.0.' || i % 4 || '.' || i || '/' || 24 + i % 8)::inet FROM generate_series(1, 100) i`},
		{name: "composite", columns: `a text COLLATE "C", b int, PRIMARY KEY (b, a)`, rows: `SELECT 'x' || i % 10, i / 10 FROM generate_series(0, 199) i`},
		{name: "key in another order than the index", columns: `a int, b text, PRIMARY KEY (a, b)`, key: []string{"b", "a"},
			rows: `SELECT i / 10, 'x' || i % 10 FROM generate_series(0, 199) i`},
		{name: "not the primary key", columns: `id serial PRIMARY KEY, "a ""b'" text NOT NULL UNIQUE`, key: []string{`a "b'`},
			after: `ALTER TABLE "ta""b le" REPLICA IDENTITY USING INDEX "ta""b le_a ""b'_key"`,
			rows:  `SELECT i, 'x' || i FROM generate_series(1, 100) i`},
		{name: "descending index", columns: `k int NOT NULL`, key: []string{"k"},
			after: `CREATE UNIQUE INDEX i ON "ta""b le" (k DESC); ALTER TABLE "ta""b le" REPLICA IDENTITY USING INDEX i`, rows: `SELECT generate_series(1, 100)`},
		{name: "partitions", columns: `k int PRIMARY KEY) PARTITION BY HASH (k`,
			after: `CREATE TABLE p0 PARTITION OF "ta""b le" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
				CREATE TABLE p1 PARTITION OF "ta""b le" FOR VALUES WITH (MODULUS 2, REMAINDER 1)`, rows: `SELECT generate_series(1, 100)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, testenv.Postgres(t), tt.before, `CREATE TABLE "ta""b le" (`+tt.columns+`)`, tt.after,
				`INSERT INTO "ta""b le" `+tt.rows)
			checkChunks(t, l, table(`ta"b le`, tt.key...))
		})
	}
}

// Chunks and look-ups come from the key's index, also where its columns compare by
// operators of several schemas: nothing scans the table.
func TestReaderUsesTheIndex(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]string{
		"one column": "b", "two columns": "b, c", "operators of two schemas": "a, b", "of two schemas, the other way round": "b, a",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, testenv.Postgres(t), citextInMy, `CREATE TABLE p (a my.citext, b int, c text, PRIMARY KEY (`+key+`))`,
				`INSERT INTO p SELECT 'x' || i, i, 'y' || i FROM generate_series(1, 20000) i`, `ANALYZE p`)
			before := l.rows(t, `SELECT seq_scan::text FROM pg_stat_user_tables WHERE relname = 'p'`)[0]
			db := l.open(t, l.config(), table("p"))
			reader, err := db.OpenReader(t.Context(), prepare(t, db).Tables[0], capture.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var after []string
			for range 3 {
				chunk, err := reader.Chunk(t.Context(), after, 10)
				if err != nil || len(chunk.Changes) != 10 {
					t.Fatalf("got %v, want 10 rows", err)
				}
				after = chunk.Last
				chunk.Release()
			}
			if chunk, err := reader.Lookup(t.Context(), [][]string{after, after}); err != nil || len(chunk.Changes) != 1 {
				t.Fatalf("a row that is asked for twice: got %v, want one row", err)
			}
			if err := reader.Close(); err != nil { // its session tells then what it has scanned
				t.Fatal(err)
			}
			testenv.Eventually(t, patience, func() error {
				if n := l.rows(t, `SELECT coalesce(sum(idx_scan), 0)::text FROM pg_stat_user_indexes WHERE relname = 'p'`)[0]; n == "0" || n == "1" {
					return fmt.Errorf("%s index scans", n)
				}
				return nil
			})
			if now := l.rows(t, `SELECT seq_scan::text FROM pg_stat_user_tables WHERE relname = 'p'`)[0]; now != before {
				t.Errorf("the table was scanned: %s times, before %s", now, before)
			}
			read, err := strconv.Atoi(l.rows(t, `SELECT sum(idx_tup_read)::text FROM pg_stat_user_indexes WHERE relname = 'p'`)[0])
			if err != nil || read > 500 {
				t.Errorf("read %d entries of the index for 31 rows (%v)", read, err)
			}
		})
	}
}

const citextInMy = `CREATE SCHEMA my; CREATE EXTENSION citext SCHEMA my`

// backwards is a type of text that sorts the other way round. Its operators can't be
// found by the names that others have, nor by a search path.
const backwards = `CREATE SCHEMA my;
	CREATE TYPE my.backwards;
	CREATE FUNCTION my.i(cstring) RETURNS my.backwards AS 'textin' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.o(my.backwards) RETURNS cstring AS 'textout' LANGUAGE internal STRICT IMMUTABLE;
	CREATE TYPE my.backwards (INPUT = my.i, OUTPUT = my.o, LIKE = text);
	CREATE CAST (text AS my.backwards) WITHOUT FUNCTION;
	CREATE FUNCTION my.lt(my.backwards, my.backwards) RETURNS bool AS 'byteagt' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.le(my.backwards, my.backwards) RETURNS bool AS 'byteage' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.eq(my.backwards, my.backwards) RETURNS bool AS 'byteaeq' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.ge(my.backwards, my.backwards) RETURNS bool AS 'byteale' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.gt(my.backwards, my.backwards) RETURNS bool AS 'bytealt' LANGUAGE internal STRICT IMMUTABLE;
	CREATE FUNCTION my.cmp0(bytea, bytea) RETURNS int AS 'byteacmp' LANGUAGE internal STRICT IMMUTABLE;
	CREATE CAST (my.backwards AS bytea) WITHOUT FUNCTION;
	CREATE FUNCTION my.cmp(my.backwards, my.backwards) RETURNS int AS 'SELECT -my.cmp0($1::bytea, $2::bytea)' LANGUAGE sql STRICT IMMUTABLE;
	CREATE OPERATOR my.<<< (LEFTARG = my.backwards, RIGHTARG = my.backwards, FUNCTION = my.lt, COMMUTATOR = OPERATOR(my.>>>));
	CREATE OPERATOR my.<<<= (LEFTARG = my.backwards, RIGHTARG = my.backwards, FUNCTION = my.le, COMMUTATOR = OPERATOR(my.>>>=));
	CREATE OPERATOR my.=== (LEFTARG = my.backwards, RIGHTARG = my.backwards, FUNCTION = my.eq, COMMUTATOR = OPERATOR(my.===), MERGES);
	CREATE OPERATOR my.>>>= (LEFTARG = my.backwards, RIGHTARG = my.backwards, FUNCTION = my.ge);
	CREATE OPERATOR my.>>> (LEFTARG = my.backwards, RIGHTARG = my.backwards, FUNCTION = my.gt);
	CREATE OPERATOR CLASS my.backwards_ops DEFAULT FOR TYPE my.backwards USING btree AS
		OPERATOR 1 my.<<<, OPERATOR 2 my.<<<=, OPERATOR 3 my.===, OPERATOR 4 my.>>>=, OPERATOR 5 my.>>>, FUNCTION 1 my.cmp(my.backwards, my.backwards)`

// checkChunks compares what chunks and look-ups read with the table.
func checkChunks(t *testing.T, l *legacy, ref capture.TableRef) {
	t.Helper()
	db := l.open(t, l.config(), ref)
	p := prepare(t, db)
	defer l.exec(t, `SELECT pg_drop_replication_slot('$db')`)
	reader, err := db.OpenReader(t.Context(), p.Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	whole := readAll(t, reader, 100_000)
	if count := l.rows(t, `SELECT count(*)::text FROM "ta""b le"`)[0]; count != fmt.Sprint(len(whole)) {
		t.Fatalf("one chunk: got %d rows, want %s", len(whole), count)
	}
	for _, limit := range []int{1, 7} {
		if diff := cmp.Diff(whole, readAll(t, reader, limit)); diff != "" {
			t.Errorf("chunks of %d (-one chunk +chunks):\n%s", limit, diff)
		}
	}
	found, err := reader.Lookup(t.Context(), inMappingOrder(whole, p.Tables[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer found.Release()
	var keys [][]string
	for i := range found.Changes {
		keys = append(keys, keyOf(&found.Changes[i]))
	}
	less := func(a, b []string) int { return slices.Compare(a, b) }
	if diff := cmp.Diff(slices.SortedFunc(slices.Values(whole), less), slices.SortedFunc(slices.Values(keys), less)); diff != "" {
		t.Errorf("look-up (-chunks +look-up):\n%s", diff)
	}
}

// inMappingOrder turns keys from the order of the columns into that of the mapping.
func inMappingOrder(keys [][]string, info capture.TableInfo) [][]string {
	var columns []string
	for _, c := range info.Relation.Columns {
		if c.Key {
			columns = append(columns, c.Name)
		}
	}
	order := info.Key
	if len(order) == 0 {
		order = info.PrimaryKey
	}
	out := make([][]string, len(keys))
	for i, key := range keys {
		for _, name := range order {
			out[i] = append(out[i], key[slices.Index(columns, name)])
		}
	}
	return out
}

func parseXID(t *testing.T, text string) uint32 {
	t.Helper()
	xid, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(xid)
}

func TestReader(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE p (id int PRIMARY KEY, a text, b text)`,
		`INSERT INTO p SELECT i, repeat(md5(i::text), 100), 'b' FROM generate_series(1, 100) i`)
	cfg := l.config()
	cfg.BatchBytes = 64 << 10
	db := l.open(t, cfg, capture.TableRef{Schema: "public", Name: "p", Omit: []string{"b"}})
	info := prepare(t, db).Tables[0]
	reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	chunk := func(after []string, limit int) *capture.Chunk {
		t.Helper()
		c, err := reader.Chunk(t.Context(), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	first := chunk(nil, 1000)
	if n := len(first.Changes); n == 0 || n > 20 || first.Done {
		t.Errorf("a chunk of 64 KiB: got %d rows of 3.2 KB, done %t", n, first.Done)
	}
	if got := first.Changes[0].New[2].Kind; got != capture.Absent {
		t.Errorf("an omitted column: got kind %d, want absent", got)
	}

	// The chunk does not see what commits after its snapshot, and its watermark
	// lies above all that it saw.
	l.exec(t, `INSERT INTO p VALUES (101)`)
	if xid := l.rows(t, `SELECT xmin::text FROM p WHERE id = 101`)[0]; first.Snapshot.Visible(parseXID(t, xid)) {
		t.Errorf("snapshot %+v sees the later transaction %s", first.Snapshot, xid)
	}
	last := chunk([]string{"100"}, 1000)
	if n := len(last.Changes); n != 1 || !last.Done || last.Watermark <= first.Watermark {
		t.Errorf("the last chunk: got %d rows, done %t, watermark %s after %s", n, last.Done, last.Watermark, first.Watermark)
	}

	// A column that was dropped, and a lost session, are no matter.
	l.exec(t, `ALTER TABLE p DROP a, ADD c int DEFAULT 7`,
		`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'backstory'`)
	again := chunk([]string{"99"}, 1000)
	var names []string
	for _, c := range again.Relation.Columns {
		names = append(names, c.Name)
	}
	if got := strings.Join(names, " "); got != "id b c" || len(again.Changes) != 2 || string(again.Changes[0].New[2].Data) != "7" {
		t.Errorf("after ALTER TABLE: got columns %s, %d rows", got, len(again.Changes))
	}

	// Another table under the name is another table.
	l.exec(t, `DROP TABLE p; CREATE TABLE p (id int PRIMARY KEY)`)
	var refusal *capture.Refusal
	if _, err := reader.Chunk(t.Context(), nil, 10); !errors.As(err, &refusal) {
		t.Errorf("of a table made anew: got %v, want a refusal", err)
	}
}

// Every chunk says when it was read, by the server's clock: what is found to be
// gone has no other time. So does one without a row, one of a look-up, and one
// whose memory served another before.
func TestChunkHasTheTimeOfItsRead(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE p (id int PRIMARY KEY)`, `INSERT INTO p VALUES (1)`)
	db := l.open(t, l.config(), table("p"))
	reader, err := db.OpenReader(t.Context(), prepare(t, db).Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	last := l.clock(t)
	for _, tt := range []struct {
		name string
		rows int
		read func() (*capture.Chunk, error)
	}{
		{"with a row", 1, func() (*capture.Chunk, error) { return reader.Chunk(t.Context(), nil, 10) }},
		{"behind the last row", 0, func() (*capture.Chunk, error) { return reader.Chunk(t.Context(), []string{"1"}, 10) }},
		{"look-up of a row and of none", 1, func() (*capture.Chunk, error) { return reader.Lookup(t.Context(), [][]string{{"1"}, {"2"}}) }},
		{"look-up of rows that are gone", 0, func() (*capture.Chunk, error) { return reader.Lookup(t.Context(), [][]string{{"2"}, {"3"}}) }},
		{"look-up of nothing", 0, func() (*capture.Chunk, error) { return reader.Lookup(t.Context(), nil) }},
	} {
		chunk, err := tt.read()
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		now := l.clock(t)
		if len(chunk.Changes) != tt.rows || chunk.Time < last || chunk.Time > now {
			t.Errorf("%s: got %d rows, read at %d, want %d between %d and %d", tt.name, len(chunk.Changes), chunk.Time, tt.rows, last, now)
		}
		for i := range chunk.Changes {
			if chunk.Changes[i].Time != chunk.Time {
				t.Errorf("%s: row %d is of %d, the chunk of %d", tt.name, i, chunk.Changes[i].Time, chunk.Time)
			}
		}
		last = now
		chunk.Release()
	}
}

// The server tells when transactions were committed where it keeps that, as the stream
// tells it.
func TestCommitTimes(t *testing.T) {
	t.Parallel()
	for _, track := range []string{"on", "off"} {
		t.Run(track, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, testenv.Postgres(t, testenv.PGSetting("track_commit_timestamp", track)), `CREATE TABLE p (id int PRIMARY KEY)`)
			db := l.open(t, l.config(), table("p"))
			reader, err := db.OpenReader(t.Context(), prepare(t, db).Tables[0], capture.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			l.exec(t, `INSERT INTO p VALUES (1)`, `INSERT INTO p VALUES (2), (3)`)
			streamed := map[uint32]int64{}
			for stream := openStream(t, db, 0); len(streamed) < 2; {
				for _, c := range nextBatch(t, stream).Changes {
					streamed[c.XID] = c.Time
				}
			}
			asked := append(slices.Collect(maps.Keys(streamed)), 1<<31, 3)
			known, err := reader.CommitTimes(t.Context(), asked)
			if err != nil {
				t.Fatal(err)
			}
			if track == "off" {
				clear(streamed)
			}
			if !maps.Equal(streamed, known) {
				t.Errorf("the server knows %v, want %v", known, streamed)
			}
		})
	}
}

// clock is the server's, in microseconds since 1970.
func (l *legacy) clock(t *testing.T) int64 {
	t.Helper()
	now, err := strconv.ParseInt(l.rows(t, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8::text`)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// A lock on the table holds the reader back, and nothing else.
func TestReaderWaitsForLocks(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE p (id int PRIMARY KEY)`, `INSERT INTO p VALUES (1)`)
	db := l.open(t, l.config(), table("p"))
	reader, err := db.OpenReader(t.Context(), prepare(t, db).Tables[0], capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	conn := l.session(t)
	for _, sql := range []string{`BEGIN`, `LOCK TABLE p IN ACCESS EXCLUSIVE MODE`, `DELETE FROM p`, `INSERT INTO p VALUES (2), (3)`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	_, xmax, err := reader.Horizon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := reader.Wait(short, xmax); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait beside a running transaction: got %v, want %v", err, context.DeadlineExceeded)
	}
	done := make(chan error, 1)
	go func() { // ends when the lock is gone
		c, err := reader.Chunk(t.Context(), nil, 10)
		if err == nil && len(c.Changes) != 2 {
			err = fmt.Errorf("got %d rows, want the 2 of the transaction that had the lock", len(c.Changes))
		}
		done <- err
	}()
	testenv.Eventually(t, patience, func() error {
		if n := l.rows(t, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'p'::regclass`)[0]; n != "1" {
			return errors.New("nobody waits for the lock")
		}
		return nil
	})
	if _, err := conn.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := reader.Wait(t.Context(), xmax); err != nil {
		t.Errorf("Wait once it is over: %v", err)
	}
}

// A chunk that the server takes too long for is given up, and the message says which
// setting did it; one that somebody cancels has another cause.
func TestChunkTimeout(t *testing.T) {
	t.Parallel()
	l := newLegacy(t, testenv.Postgres(t), `CREATE TABLE p (id int PRIMARY KEY)`, `INSERT INTO p VALUES (1)`)
	db := l.open(t, l.config(), table("p"))
	info := prepare(t, db).Tables[0]
	for _, timeout := range []time.Duration{200 * time.Millisecond, time.Hour} {
		reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{Where: "pg_sleep(600) IS NOT NULL", StatementTimeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		ended := make(chan error, 1)
		go func() { // ends when the server cancels
			_, err := reader.Chunk(t.Context(), nil, 10)
			ended <- err
		}()
		cancelled := timeout == time.Hour
		for err = nil; err == nil; {
			if cancelled {
				l.exec(t, `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = '$db' AND query LIKE 'COPY%pg_sleep(600)%'`)
			}
			select {
			case err = <-ended:
			case <-time.After(50 * time.Millisecond):
			}
		}
		if blamed := strings.Contains(err.Error(), "backfill.statement_timeout ("+timeout.String()+")"); blamed == cancelled || !strings.Contains(err.Error(), "copy rows") {
			t.Errorf("a chunk that takes ten minutes, cancelled by somebody %t: got %v", cancelled, err)
		}
	}
}
