package capture_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/testenv"
)

// Whatever encoding a database has, its texts arrive in UTF-8: values, keys and the
// cursors behind them, names of tables, columns, publications and types, arrays,
// JSON, and what is said in context messages; by the stream and by the reader alike.
func TestTextsOfEachEncoding(t *testing.T) {
	t.Parallel()
	tests := []struct{ encoding, word, other string }{
		{"LATIN1", "Grüße", "äöü"},
		{"LATIN2", "Łódź", "čšž"},
		{"WIN1251", "Привет", "мир"},
		{"WIN1252", "„Grüße“–5€", "œuvre"},
		{"KOI8U", "Їжак", "ґ"},
		{"EUC_JP", "日本語ﾃｽﾄ", "髙﨑"},
		{"EUC_KR", "안녕", "세계"},
		{"EUC_CN", "你好", "世界"},
		{"EUC_TW", "臺灣", "中文"},
		{"SQL_ASCII", "Grüße日本", "äöü"},
		{"UTF8", "Grüße日本🚀", "äöü"},
	}
	for _, tt := range tests {
		t.Run(tt.encoding, func(t *testing.T) {
			t.Parallel()
			names := strings.NewReplacer("$word", tt.word, "$other", tt.other)
			pg := testenv.Postgres(t)
			l := legacyAt(t, pg, pg.DatabaseOf(t, tt.encoding),
				names.Replace(`CREATE TYPE "$other" AS ENUM ('$word', 'b');
					CREATE TABLE "$word" ("$other" text, n int, v "$other", list text[], j json, b jsonb, PRIMARY KEY ("$other", n))`),
				names.Replace(`INSERT INTO "$word" SELECT '$word' || i / 5, i, '$word', ARRAY['$word', NULL, '"$other,\\'], '{"$word": "$other"}', '{"$word": "$other"}'
					FROM generate_series(1, 20) i`))
			cfg := l.config()
			cfg.Publication = tt.other
			db := l.open(t, cfg, capture.TableRef{Schema: "public", Name: tt.word, Key: []string{tt.other, "n"}})
			info := prepare(t, db).Tables[0]
			reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{Where: names.Replace(`"$other" <> '$other'`)})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			read := map[string][]string{}
			var after []string
			for done := false; !done; {
				chunk, err := reader.Chunk(t.Context(), after, 3)
				if err != nil {
					t.Fatal(err)
				}
				for i := range chunk.Changes {
					row := textsOf(t, &chunk.Changes[i])
					read[row[1]] = row
				}
				done = chunk.Done
				if chunk.Last != nil {
					after = chunk.Last
				}
				chunk.Release()
			}
			found, err := reader.Lookup(t.Context(), [][]string{{tt.word + "1", "7"}, {tt.word, "1"}})
			if err != nil || len(read) != 20 || len(found.Changes) != 1 {
				t.Fatalf("read %d rows and found %d (%v), want 20 and 1", len(read), len(found.Changes), err)
			}
			if diff := cmp.Diff(read["n=7"], textsOf(t, &found.Changes[0])); diff != "" {
				t.Errorf("-chunk +look-up:\n%s", diff)
			}

			l.exec(t, names.Replace(`BEGIN; SELECT pg_logical_emit_message(true, 'backstory.context', '{"reason": "$word", "actor": "$other"}');
				UPDATE "$word" SET "$other" = '$other' || n, v = 'b'; COMMIT`))
			batch := nextBatch(t, openStream(t, db, 0))
			if len(batch.Changes) != 20 {
				t.Fatalf("got %d changes, want 20", len(batch.Changes))
			}
			for i := range batch.Changes {
				c := &batch.Changes[i]
				row := textsOf(t, c)
				n := string(c.New[1].Data)
				want := []string{tt.other + "=" + tt.other + n, "n=" + n, "v=b"}
				if diff := cmp.Diff(append(want, read["n="+n][3:]...), row); diff != "" {
					t.Errorf("-want +streamed:\n%s", diff)
				}
				if old := tt.other + "=" + string(c.Old[0].Data); old != read["n="+n][0] {
					t.Errorf("the old key is %s, want %s", old, read["n="+n][0])
				}
				if tt.encoding == "EUC_TW" { // only the server converts it, and not what a message says
					continue
				}
				if c.Context == nil || string(c.Context.Reason) != `"`+tt.word+`"` || c.Context.Actor != tt.other {
					t.Errorf("the context is %+v, want %s and %s", c.Context, tt.word, tt.other)
				}
			}
			if want := "v=" + tt.word; read["n=7"][2] != want || read["n=7"][3] != `list={`+tt.word+`,NULL,"\"`+tt.other+`,\\\\"}` {
				t.Errorf("got %q, want %q", read["n=7"], want)
			}
		})
	}
}

// broken makes a text in whose middle there are bytes that are none in the encoding of the
// database.
func broken(bytes string) string {
	return `convert_from('\x61` + bytes + `7a'::bytea, getdatabaseencoding())`
}

// badTexts are encodings with bytes that are no text in them.
var badTexts = []struct{ encoding, bytes, named, replaced string }{
	{"WIN1252", "81", "byte 2, 81, is no character of WIN1252", "a\uFFFDz"},
	{"WIN1252", "8d9d", "byte 2, 8D, is no character of WIN1252", "a\uFFFD\uFFFDz"},
	{"LATIN3", "a5", "byte 2, A5, is no character of LATIN3", "a\uFFFDz"},
	{"EUC_JP", "fcfe", "byte 2, FCFE, is no character of EUC_JP", "a\uFFFDz"},
	{"EUC_KR", "c9a1", "byte 2, C9A1, is no character of EUC_KR", "a\uFFFDz"},
	{"SQL_ASCII", "fc", "byte 2, FC, is not UTF-8", "a\uFFFDz"},
	{"SQL_ASCII", "e282", "byte 2, E2, is not UTF-8", "a\uFFFD\uFFFDz"},
}

// A text that is none is refused, with its table, column, position and row, by the
// stream and by the reader; where its column is left out it is no matter, and where
// the mapping says so it is replaced, also in arrays and JSON. What comes behind it
// arrives.
func TestTextThatIsNone(t *testing.T) {
	t.Parallel()
	for _, tt := range badTexts {
		t.Run(tt.encoding+" "+tt.bytes, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t)
			l := legacyAt(t, pg, pg.DatabaseOf(t, tt.encoding), `CREATE TABLE p (id int PRIMARY KEY, "name" text, list text[], j json)`)
			plain := capture.TableRef{Schema: "public", Name: "p"}
			without, replacing := plain, plain
			without.Omit, replacing.Replace = []string{"name", "list", "j"}, true
			db := l.open(t, l.config(), plain)
			info := prepare(t, db).Tables[0]
			bad := broken(tt.bytes)
			l.exec(t, `INSERT INTO p VALUES (7, `+bad+`, ARRAY['b', `+bad+`], ('{"k": "' || `+bad+` || '"}')::json)`, `UPDATE p SET id = 8`)

			stream, err := db.Open(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			err = failureOf(t, stream)
			l.refused(t, "streamed", err, "table public.p, column name", "insert at ", " change 1", ", transaction ", `key id "7"`, tt.named, "omit", "undecodable: replace")
			if err := stream.Close(); err != nil {
				t.Error(err)
			}
			_, err = readOne(t, db, info, nil)
			l.refused(t, "read", err, "table public.p, column name", `key id "8"`, tt.named, "mend the row", "omit", "undecodable: replace")

			for _, ref := range []capture.TableRef{without, replacing} {
				db, info := l.open(t, l.config(), ref), info
				prepare(t, db)
				info.TableRef = ref
				stream, err := db.Open(bounded(t), 0)
				if err != nil {
					t.Fatal(err)
				}
				want := []string{tt.replaced, "{b," + tt.replaced + "}", `{"k": "` + tt.replaced + `"}`}
				for n, c := range nextBatch(t, stream).Changes {
					if string(c.New[0].Data) != fmt.Sprint(7+n) {
						t.Errorf("change %d has the key %s", n, c.New[0].Data)
					}
					for i, w := range want {
						if got := string(c.New[1+i].Data); ref.Replace && got != w {
							t.Errorf("streamed: got %q, want %q", got, w)
						}
					}
				}
				if err := stream.Close(); err != nil {
					t.Error(err)
				}
				row, err := readOne(t, db, info, [][]string{{"8"}})
				for i, w := range want {
					if err != nil || ref.Replace && row[1+i] != w {
						t.Fatalf("read: got %q, %v, want %q", row, err, w)
					}
				}
			}
		})
	}
}

// failureOf is why the stream ends, before it has brought any change.
func failureOf(t *testing.T, stream *capture.Stream) error {
	t.Helper()
	ctx := bounded(t)
	for {
		batch, err := stream.Next(ctx)
		if err != nil {
			return err
		}
		if len(batch.Changes) > 0 {
			t.Fatalf("got %s", describe(&batch.Changes[0]))
		}
	}
}

// readOne reads the only row of a table, by a chunk or, with keys, by a look-up.
func readOne(t *testing.T, db *capture.Database, info capture.TableInfo, keys [][]string) ([]string, error) {
	t.Helper()
	reader, err := db.OpenReader(t.Context(), info, capture.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	read := func() (*capture.Chunk, error) { return reader.Chunk(t.Context(), nil, 10) }
	if keys != nil {
		read = func() (*capture.Chunk, error) { return reader.Lookup(t.Context(), keys) }
	}
	chunk, err := read()
	if err != nil {
		return nil, err
	}
	if len(chunk.Changes) != 1 {
		t.Fatalf("read %d rows, want 1", len(chunk.Changes))
	}
	var row []string
	for _, v := range chunk.Changes[0].New {
		row = append(row, string(v.Data))
	}
	return row, nil
}

// refused wants a refusal that says all of it.
func (l *legacy) refused(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	var refusal *capture.Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("%s: got %v, want a refusal", what, err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %q is not in %q", what, part, err)
		}
	}
}

// In a key nothing is replaced, and the message does not say that it would help.
func TestKeyThatIsNoText(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{"DEFAULT", "FULL"} {
		t.Run(identity, func(t *testing.T) {
			t.Parallel()
			pg := testenv.Postgres(t)
			l := legacyAt(t, pg, pg.DatabaseOf(t, "WIN1252"), `CREATE TABLE p (k text, n int, PRIMARY KEY (k, n)); ALTER TABLE p REPLICA IDENTITY `+identity,
				`INSERT INTO p VALUES (`+broken("81")+`, 5)`)
			db := l.open(t, l.config(), capture.TableRef{Schema: "public", Name: "p", Replace: true})
			info := prepare(t, db).Tables[0]
			_, err := readOne(t, db, info, nil)
			l.refused(t, "read", err, "column k", `key k "a�z", key n "5"`, "mend the row", "a part of the key is never replaced")
			l.exec(t, `UPDATE p SET k = 'good'`)
			err = failureOf(t, openStream(t, db, 0))
			l.refused(t, "streamed", err, "column k", "update at ", `key n "5"`, "a part of the key is never replaced")
		})
	}
}

// The old row of a table with identity FULL is only compared: what is no text in it
// does not keep the bridge from taking in that somebody mended it.
func TestMendedTextUnderIdentityFull(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	l := legacyAt(t, pg, pg.DatabaseOf(t, "WIN1252"), `CREATE TABLE p (id int PRIMARY KEY, a text, b text); ALTER TABLE p REPLICA IDENTITY FULL`,
		`INSERT INTO p VALUES (1, `+broken("81")+`, 'ä')`)
	db := l.open(t, l.config(), table("p"))
	prepare(t, db)
	l.exec(t, `UPDATE p SET a = 'ö'`, `DELETE FROM p`)
	stream := openStream(t, db, 0)
	var changes []capture.Change
	for len(changes) < 2 {
		changes = append(changes, nextBatch(t, stream).Changes...)
	}
	mended := changes[0]
	if string(mended.New[1].Data) != "ö" || mended.Old[1].Kind != capture.Absent || string(mended.Old[2].Data) != "ä" || string(mended.Old[0].Data) != "1" {
		t.Errorf("got %s", describe(&mended))
	}
}

// A large text that an update does not touch is taken from the old row of identity
// FULL; then it does matter.
func TestUntouchedTextUnderIdentityFull(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	l := legacyAt(t, pg, pg.DatabaseOf(t, "WIN1252"), `CREATE TABLE p (id int PRIMARY KEY, a text, n int); ALTER TABLE p REPLICA IDENTITY FULL; ALTER TABLE p ALTER a SET STORAGE EXTERNAL`,
		`INSERT INTO p VALUES (1, `+broken("81")+` || repeat('x', 10000), 1)`)
	db := l.open(t, l.config(), table("p"))
	prepare(t, db)
	l.exec(t, `UPDATE p SET n = 2`)
	err := failureOf(t, openStream(t, db, 0))
	l.refused(t, "streamed", err, "column a", "update at", "byte 2, 81")
}

// The preflight says what becomes of a database's texts.
func TestDoctorTellsOfTheEncoding(t *testing.T) {
	t.Parallel()
	for encoding, want := range map[string]struct {
		level capture.Level
		says  string
	}{
		"UTF8": {capture.LevelOK, ""}, "LATIN1": {capture.LevelOK, "encoding: LATIN1"}, "SQL_ASCII": {capture.LevelWarning, "undecodable: replace"},
		"EUC_TW": {capture.LevelWarning, "only the server can convert EUC_TW"},
	} {
		pg := testenv.Postgres(t)
		l := legacyAt(t, pg, pg.DatabaseOf(t, encoding), `CREATE TABLE p (id int PRIMARY KEY)`)
		report, err := l.open(t, l.config(), table("p")).Doctor(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := findings(report, want.level); !strings.Contains(got, want.says) {
			t.Errorf("%s: got %s, want %q", encoding, got, want.says)
		}
	}
}
