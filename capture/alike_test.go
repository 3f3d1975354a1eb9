package capture_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/testenv"
)

// strange are settings of a database that change what its sessions print, or
// understand, where a session does not have its own.
var strange = []string{
	`ALTER DATABASE $db SET search_path = my, public`,
	`ALTER DATABASE $db SET quote_all_identifiers = on`,
	`ALTER DATABASE $db SET array_nulls = off`,
	`ALTER DATABASE $db SET DateStyle = 'SQL, DMY'`,
	`ALTER DATABASE $db SET TimeZone = 'Asia/Kolkata'`,
	`ALTER DATABASE $db SET IntervalStyle = 'postgres_verbose'`,
	`ALTER DATABASE $db SET bytea_output = 'escape'`,
	`ALTER DATABASE $db SET extra_float_digits = -5`,
	`ALTER DATABASE $db SET xmlbinary = hex`,
	`ALTER DATABASE $db SET xmloption = document`,
	`ALTER DATABASE $db SET standard_conforming_strings = off`,
}

// printed has a column for each type whose text depends on a setting, and a key
// whose operators no search path of the session finds.
const printed = `CREATE SCHEMA my; CREATE EXTENSION citext SCHEMA my; CREATE TYPE my.mood AS ENUM ('sad'); CREATE TABLE my.seen (a int);
	CREATE TABLE public.seen (a int); CREATE TYPE my.pair AS (r regclass, t timestamptz);
	CREATE TABLE p (k my.citext PRIMARY KEY, c regclass, cs regclass[], t regtype, ts regtype[], f regproc, ff regprocedure,
		o regoper, oo regoperator, g regconfig, d regdictionary, pair my.pair, day date, at timestamptz, i interval, b bytea, r float4, m money, x xml)`

const printedRow = `INSERT INTO p VALUES ('a', 'my.seen', '{my.seen,public.seen,pg_class}', 'my.mood', '{my.mood,my.citext[],int8}',
	'my.citextin', 'my.citext_eq(my.citext,my.citext)', 'my.>=', 'my.=(my.citext,my.citext)', 'english', 'simple', '(my.seen,2026-01-31 05:30+05:30)',
	'2026-01-31', '2026-01-31 05:30+05:30', '1 day', '\x00ff', 0.1, 1234.5, '<a/>')`

// What the stream brings of a row and what a reader reads of it are the same text,
// for every type whose text depends on settings, whatever those of the database are.
func TestStreamAndReaderPrintAlike(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, testenv.Postgres(t, testenv.PGVersion(version)), printed)
			db := l.open(t, l.config(), table("p"))
			info := prepare(t, db).Tables[0]
			l.exec(t, append([]string{printedRow}, strange...)...)
			reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			stream := openStream(t, db, 0)
			streamed := textsOf(t, &nextBatch(t, stream).Changes[0])
			for _, read := range []func() (*capture.Chunk, error){
				func() (*capture.Chunk, error) { return reader.Chunk(t.Context(), nil, 10) },
				func() (*capture.Chunk, error) { return reader.Chunk(t.Context(), []string{""}, 10) },
				func() (*capture.Chunk, error) { return reader.Lookup(t.Context(), [][]string{{"A"}}) },
			} {
				chunk, err := read()
				if err != nil {
					t.Fatal(err)
				}
				if len(chunk.Changes) != 1 {
					t.Fatalf("got %d rows, want 1", len(chunk.Changes))
				}
				if diff := cmp.Diff(streamed, textsOf(t, &chunk.Changes[0])); diff != "" {
					t.Errorf("-streamed +read:\n%s", diff)
				}
			}
			if got, want := streamed[1]+" "+streamed[3], "c=my.seen t=my.mood"; got != want {
				t.Errorf("got %s, want %s: names are qualified", got, want)
			}
		})
	}
}

// textsOf has the row of a change, a column each.
func textsOf(t *testing.T, c *capture.Change) []string {
	t.Helper()
	texts := make([]string, len(c.New))
	for i, v := range c.New {
		if v.Kind != capture.Text {
			t.Errorf("column %s is of kind %d", c.Relation.Columns[i].Name, v.Kind)
		}
		texts[i] = c.Relation.Columns[i].Name + "=" + string(v.Data)
	}
	return texts
}

// nextBatch is the next batch that has changes.
func nextBatch(t *testing.T, stream *capture.Stream) *capture.Batch {
	t.Helper()
	ctx := bounded(t)
	for {
		batch, err := stream.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch.Changes) > 0 {
			return batch
		}
	}
}

// differing are the settings in which a reader's session may differ from that of the
// stream: how long it may take, how it gets at the rows, and what it is called. None
// of them changes what is printed.
var differing = []string{
	"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout",
	"enable_sort", "enable_seqscan", "enable_bitmapscan", "max_parallel_workers_per_gather", "jit",
	"transaction_isolation", "transaction_read_only",
	"in_hot_standby", "plan_cache_mode", "wal_sender_timeout",
}

// While a chunk is being copied, the reader's session has the settings of the
// stream's, all of them: the condition of the chunk asks the server.
func TestStreamAndReaderHaveOneSetOfSettings(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"10", "15", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			l := newLegacy(t, testenv.Postgres(t, testenv.PGVersion(version)), printed)
			db := l.open(t, l.config(), table("p"))
			info := prepare(t, db).Tables[0]
			l.exec(t, append([]string{printedRow}, strange...)...)
			streaming, err := db.StreamingSettings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range capture.Pinned() {
				if got := streaming[name]; !strings.HasPrefix(got, want) { // the server completes a DateStyle
					t.Errorf("the stream has %s = %s, want %s", name, got, want)
				}
			}
			if len(streaming) < 200 {
				t.Fatalf("the server tells of %d settings only", len(streaming))
			}
			all := make([]string, 0, len(streaming))
			for _, name := range slices.Sorted(maps.Keys(streaming)) {
				if !slices.Contains(differing, name) {
					all = append(all, fmt.Sprintf("(%s,%s)", quoted(name), quoted(streaming[name])))
				}
			}
			same := func(pairs []string) bool {
				t.Helper()
				where := `NOT EXISTS (SELECT FROM (VALUES ` + strings.Join(pairs, ",") + `) s (name, value) JOIN pg_settings p USING (name) WHERE p.setting <> s.value)`
				reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{Where: where})
				if err != nil {
					t.Fatal(err)
				}
				defer reader.Close()
				chunk, err := reader.Chunk(t.Context(), nil, 10)
				if err != nil {
					t.Fatal(err)
				}
				return len(chunk.Changes) == 1
			}
			if same(all) {
				return
			}
			for _, pair := range all {
				if !same([]string{pair}) {
					t.Errorf("the stream has %s, the reader another", pair)
				}
			}
		})
	}
}

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
