package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"backstory/internal/testenv"
)

// A database in WIN1252: names, keys, values and reasons with umlauts arrive. A text
// that is none ends the bridge with its table, column, row and position, as often as
// it is started, from the stream and from the table; leaving its column out, or having
// it replaced, lets the bridge go on with all that comes behind.
func TestTextThatIsNone(t *testing.T) {
	t.Parallel()
	pg := testenv.Postgres(t)
	r := &rig{tb: t, dsn: pg.DatabaseOf(t, "WIN1252"), brokers: testenv.Kafka(t).Brokers(), dir: t.TempDir(), http: freeAddr(t)}
	prefix, _, _ := strings.Cut(filepath.Base(r.dsn), "?")
	r.topics = [2]string{prefix + ".events", prefix + ".latest"}
	r.configure()
	r.write("products.yaml", `
tables:
  - table: '"Läden"."Größen"'
    aggregate: Size
    key: ["Schlüssel"]
    topics: {events: `+r.topics[0]+`, latest: `+r.topics[1]+`}
    undecodable: refuse
`)
	r.exec(`CREATE SCHEMA "Läden"`)
	r.exec(`CREATE TABLE "Läden"."Größen" ("Schlüssel" text PRIMARY KEY, "Name" text, "Größe" int)`)
	r.exec(`INSERT INTO "Läden"."Größen" SELECT 'ä' || i, 'Stück für 5 €', i FROM generate_series(1, 300) i`)
	p := r.start("--backfill.chunk_rows=50")
	p.drained(time.Minute)
	r.exec(`WITH said AS MATERIALIZED (SELECT pg_logical_emit_message(true, 'backstory.context', '{"reason": "Frühjahrsputz – 20 %", "actor": "Jürgen"}'))
		UPDATE "Läden"."Größen" SET "Größe" = 8 FROM said WHERE "Schlüssel" = 'ä7'`)
	p.drained(time.Minute)
	r.equal(300)
	told := false
	for _, e := range r.records(r.topics[0]) {
		told = told || e.Key == "ä7" && e.Headers["ce_actor"] == "Jürgen" && string(e.Value) == `{"old":{"Größe":7},"new":{"Größe":8},"reason":"Frühjahrsputz – 20 %"}`
	}
	if !told {
		t.Error("no event has the reason of the message")
	}
	p.stop()

	const none = `convert_from('\x618d7a'::bytea, 'WIN1252')`
	r.exec(`UPDATE "Läden"."Größen" SET "Name" = ` + none + ` WHERE "Schlüssel" = 'ä9'`)
	r.exec(`UPDATE "Läden"."Größen" SET "Größe" = 10 WHERE "Schlüssel" = 'ä9'`)
	for range 2 {
		r.fails(refusedCode, `table Läden.Größen, column Name: update at `, ` change 1, transaction `, `key Schlüssel "ä9"`,
			"byte 2, 8D, is no character of WIN1252", "omit", "undecodable: replace")
	}
	r.edit("products.yaml", "undecodable: refuse", "omit: [Name]")
	p = r.start()
	p.drained(time.Minute)
	r.equal(300)
	p.stop()

	// Without a state the table is read: again the row has a name.
	if err := os.RemoveAll(filepath.Join(r.dir, "state")); err != nil {
		t.Fatal(err)
	}
	r.edit("products.yaml", "omit: [Name]", "undecodable: refuse")
	r.fails(refusedCode, `table Läden.Größen, column Name: in the row that a chunk has read, key Schlüssel "ä9"`, "mend the row")
	r.edit("products.yaml", "undecodable: refuse", "undecodable: replace")
	p = r.start()
	p.drained(time.Minute)
	r.equal(300)
	p.stop()
	newest := ""
	for _, l := range r.records(r.topics[1]) {
		if l.Key == "ä9" {
			newest = string(l.Value)
		}
	}
	if !strings.Contains(newest, `"Name":"a`+"\uFFFD"+`z"`) {
		t.Errorf("the newest state is %s", newest)
	}
}
