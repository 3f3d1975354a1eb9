package e2e_test

import (
	"context"
	big "encoding/binary"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/internal/e2e/audit"
	"backstory/internal/state"
	"backstory/internal/testenv"
	"backstory/internal/verify"
	"backstory/transform"
)

// planted is a corruption and what must be told of it.
type planted struct {
	name    string
	key     string
	problem verify.Problem
	field   string
	sides   [2]verify.Side // the two that differ; the second is empty where a record is wrong by itself
	values  [2]string      // parts of the values' JSON; empty: any
}

// told reports whether a difference names the corruption.
func (p *planted) told(d *verify.Difference) bool {
	if d.Key != p.key || d.Problem != p.problem || d.Field != p.field || d.Table != "public.products" {
		return false
	}
	for i, side := range p.sides {
		if side == "" {
			continue
		}
		if i >= len(d.Values) || d.Values[i].Side != side || !strings.Contains(string(d.Values[i].Value), p.values[i]) {
			return false
		}
	}
	return true
}

// found wants every corruption told, and nothing of any other key.
func (r *rig) found(plants []planted) {
	r.tb.Helper()
	result, code := r.verified()
	if code != 4 || result.Equal {
		r.tb.Errorf("exit code %d, equal %t", code, result.Equal)
	}
	if result.NotCompared > 0 {
		r.tb.Errorf("%d keys not compared: %q", result.NotCompared, result.Unsettled)
	}
	missed := 0
	for i := range plants {
		p := &plants[i]
		if !slices.ContainsFunc(result.Differences, func(d verify.Difference) bool { return p.told(&d) }) {
			missed++
			r.tb.Errorf("not found: %+v", *p)
		}
	}
	for i := range result.Differences {
		d := &result.Differences[i]
		if d.Problem != verify.EventsRemoved && !slices.ContainsFunc(plants, func(p planted) bool { return p.key == d.Key }) {
			r.tb.Errorf("nobody planted this: %s", d)
		}
	}
	r.tb.Logf("%d of %d found; %d differences, %d looks repeated", len(plants)-missed, len(plants), result.Found, result.Compared.LookedAgain)
	if r.tb.Failed() {
		r.tb.Logf("told:\n%s", differences(result))
	}
}

// Rows that were changed behind the stream's back and entries of the state that
// were altered are all found, while writers write other rows.
func TestVerifyFindsTableAndState(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 3000)
	p := r.start()
	p.streaming()
	p.drained(time.Minute)
	for _, sql := range []string{
		`UPDATE products SET price = 1.11, stock = 5 WHERE id > 2000`,
		`DELETE FROM products WHERE id = 2999`,
	} {
		r.exec(sql)
	}
	p.drained(time.Minute)
	p.stop()
	plants := r.plantTable()
	plants = append(plants, r.plantState(r.skipWAL())...)
	p = r.start()
	p.streaming()
	stop := r.writing(2, 1900, 2*time.Millisecond, false)
	r.found(plants)
	t.Logf("%d changes meanwhile", stop())
	p.stop()
}

// skipWAL moves the slot over all changes that the bridge has not read, and returns
// where it is then: a state that says the same makes them lost to the stream.
func (r *rig) skipWAL() pglogrepl.LSN {
	r.tb.Helper()
	var text string
	slot, _, _ := strings.Cut(r.topics[0], ".")
	if err := r.connect().QueryRow(r.tb.Context(), `SELECT end_lsn::text FROM pg_replication_slot_advance($1, pg_current_wal_lsn())`, slot).Scan(&text); err != nil {
		r.tb.Fatal(err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		r.tb.Fatal(err)
	}
	return lsn
}

// plantTable changes rows while the bridge is down; skipWAL must follow.
func (r *rig) plantTable() []planted {
	r.tb.Helper()
	for _, sql := range []string{
		`UPDATE products SET price = 2.22 WHERE id = 2001`,
		`UPDATE products SET stock = 6 WHERE id = 2002`,
		`UPDATE products SET name = 'forged' WHERE id = 2003`,
		`UPDATE products SET description = repeat('z', 9000) WHERE id = 2020`,
		`UPDATE products SET attributes = '{"color": "black"}' WHERE id = 2005`,
		`UPDATE products SET tags = ARRAY['one'] WHERE id = 2006`,
		`UPDATE products SET active = NOT active WHERE id = 2007`,
		`UPDATE products SET weight = 1e-300 WHERE id = 2008`,
		`UPDATE products SET updated_at = '2020-02-02 02:02:02.000002Z' WHERE id = 2009`,
		`UPDATE products SET price = NULL WHERE id = 2010`,
		`DELETE FROM products WHERE id = 2011`,
		`UPDATE products SET id = 9000001 WHERE id = 2012`,
		`INSERT INTO products (id, sku) VALUES (2999, 'risen')`,
	} {
		r.exec(sql)
	}
	differs := func(key, field, table, events string) planted {
		return planted{"row changed", key, verify.ValueDiffers, field, [2]verify.Side{verify.Table, verify.Events}, [2]string{table, events}}
	}
	missing := func(key, table, events string) planted {
		return planted{"row made or removed", key, verify.Missing, "", [2]verify.Side{verify.Table, verify.Events}, [2]string{table, events}}
	}
	return []planted{
		differs("2001", "price", `"2.22"`, `"1.11"`), differs("2002", "stock", `6`, `5`), differs("2003", "name", `"forged"`, `Product 2003`),
		differs("2020", "description", `zzz`, `"`), differs("2005", "attributes", `black`, `"g"`), differs("2006", "tags", `one`, `a2006`),
		differs("2007", "active", `true`, `false`), differs("2008", "weight", `1e-300`, `200.8`),
		differs("2009", "updated_at", `2020-02-02T02:02:02.000002Z`, `2026-`), differs("2010", "price", `null`, `"1.11"`),
		missing("2011", ``, `SKU-2011`), missing("2012", ``, `SKU-2012`), missing("9000001", `SKU-2012`, ``), missing("2999", `risen`, ``),
	}
}

// plantState alters entries of a stopped bridge's state, and lets it believe that it
// has everything up to lsn.
func (r *rig) plantState(lsn pglogrepl.LSN) []planted {
	r.tb.Helper()
	store, err := state.Open(r.tb.Context(), state.Config{Dir: filepath.Join(r.dir, "state")}, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer store.Close()
	b := store.Begin()
	const table = 1 // the first of the mapping
	alter := func(key string, change func(*transform.Entry)) {
		e, _, err := b.Get(table, []byte(key))
		if err != nil {
			r.tb.Fatal(err)
		}
		e.Image = slices.Clone(e.Image)
		change(&e)
		if err := b.Put(table, []byte(key), e); err != nil {
			r.tb.Fatalf("key %s: %+v: %v", key, e, err)
		}
	}
	replace := func(old, now string) func(*transform.Entry) {
		return func(e *transform.Entry) {
			image := strings.Replace(string(e.Image), old, now, 1)
			if image == string(e.Image) {
				r.tb.Fatalf("%s is not in %s", old, e.Image)
			}
			e.Image = []byte(image)
		}
	}
	alter("2101", replace(`"price":"1.11"`, `"price":"1.12"`))
	alter("2102", replace(`"stock":5`, `"stock":50`))
	alter("2103", replace(`"name":"Product 2103`, `"name":"product 2103`))
	alter("2104", replace(`"active":true,`, ``))
	alter("2105", func(e *transform.Entry) { e.Version++ })
	alter("2106", func(e *transform.Entry) { e.Version-- })
	alter("2107", func(e *transform.Entry) { e.XID++ })
	alter("2108", func(e *transform.Entry) { e.Place.Pos.Index++ })
	alter("2109", func(e *transform.Entry) { e.Image = nil })
	alter("2110", func(e *transform.Entry) { *e = transform.Entry{} })
	alter("8000001", func(e *transform.Entry) {
		*e = transform.Entry{Version: 3, Place: transform.Place{Index: 1}, Image: []byte(`{"id":8000001}`)}
	})
	alter("no number", func(e *transform.Entry) {
		*e = transform.Entry{Version: 1, Place: transform.Place{Index: 1}, Image: []byte(`{"id":0}`)}
	})
	b.SetMeta("lsn", big.BigEndian.AppendUint64(nil, uint64(lsn)))
	if err := store.Commit(b); err != nil {
		r.tb.Fatal(err)
	}
	plant := func(key string, problem verify.Problem, field, state, events string) planted {
		return planted{"entry altered", key, problem, field, [2]verify.Side{verify.State, verify.Events}, [2]string{state, events}}
	}
	return []planted{
		plant("2101", verify.ValueDiffers, "price", `"1.12"`, `"1.11"`), plant("2102", verify.ValueDiffers, "stock", `50`, `5`),
		plant("2103", verify.ValueDiffers, "name", `product`, `Product`), plant("2104", verify.ValueDiffers, "active", ``, `true`),
		plant("2105", verify.Unfounded, "version", `4`, `3`), plant("2106", verify.Behind, "version", `2`, `3`),
		plant("2107", verify.HeadersDiffer, "xid", ``, ``), plant("2108", verify.HeadersDiffer, "position", ``, ``),
		plant("2109", verify.Missing, "", ``, `SKU-2109`), plant("2110", verify.Missing, "version", ``, `3`),
		plant("8000001", verify.Missing, "version", `3`, ``), plant("no number", verify.Missing, "version", `1`, ``),
	}
}

// forger writes into the topics as nobody should.
type forger struct {
	r       *rig
	client  *kgo.Client
	records [2]map[string][]audit.Record // by topic and key
}

func (r *rig) newForger() *forger {
	r.tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(r.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(client.Close)
	f := &forger{r: r, client: client}
	for i, topic := range r.topics {
		records, _, err := audit.ReadTopic(r.tb.Context(), r.brokers, topic)
		if err != nil {
			r.tb.Fatal(err)
		}
		f.records[i] = map[string][]audit.Record{}
		for _, record := range records {
			f.records[i][record.Key] = append(f.records[i][record.Key], record)
		}
	}
	return f
}

// forge writes a changed copy of the newest record of a key.
func (f *forger) forge(topic int, key string, change func(*kgo.Record, map[string]string)) {
	f.r.tb.Helper()
	all := f.records[topic][key]
	like := all[len(all)-1]
	out := &kgo.Record{Topic: f.r.topics[topic], Partition: like.Partition, Key: []byte(like.Key), Value: like.Value, Timestamp: like.Time}
	change(out, like.Headers)
	for name, value := range like.Headers {
		out.Headers = append(out.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	if err := f.client.ProduceSync(f.r.tb.Context(), out).FirstErr(); err != nil {
		f.r.tb.Fatal(err)
	}
}

// remove takes the records below an offset away.
func (f *forger) remove(topic int, partition int32, below int64) {
	f.r.tb.Helper()
	ctx, cancel := context.WithTimeout(f.r.tb.Context(), time.Minute)
	defer cancel()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: f.r.topics[topic], Partition: partition, At: below})
	done, err := kadm.NewClient(f.client).DeleteRecords(ctx, offsets)
	if err == nil {
		err = done.Error()
	}
	if err != nil {
		f.r.tb.Fatal(err)
	}
}

// policy sets the cleanup policy of the latest topic.
func (f *forger) policy(value string) {
	f.r.tb.Helper()
	done, err := kadm.NewClient(f.client).AlterTopicConfigs(f.r.tb.Context(),
		[]kadm.AlterConfig{{Name: "cleanup.policy", Value: &value}}, f.r.topics[1])
	if err == nil {
		err = done[0].Err
	}
	if err != nil {
		f.r.tb.Fatal(err)
	}
}

// firstOf is the first record in a partition of a topic of all keys that have so
// many records; 0: any number.
func (f *forger) firstOf(topic int, partition int32, count int) (first audit.Record) {
	first.Offset = -1
	for _, records := range f.records[topic] {
		if count > 0 && len(records) != count {
			continue
		}
		if r := records[0]; r.Partition == partition && (first.Offset < 0 || r.Offset < first.Offset) {
			first = r
		}
	}
	return first
}

func set(name, value string) func(*kgo.Record, map[string]string) {
	return func(_ *kgo.Record, h map[string]string) { h[name] = value }
}

func replaced(old, now string) func(*kgo.Record, map[string]string) {
	return func(r *kgo.Record, _ map[string]string) {
		r.Value = []byte(strings.Replace(string(r.Value), old, now, 1))
	}
}

// next makes a copy the following event of its key, one transaction later.
func next(data string) func(*kgo.Record, map[string]string) {
	return func(r *kgo.Record, h map[string]string) {
		h["ce_aggregateversion"] = fmt.Sprint(int(h["ce_aggregateversion"][0]-'0') + 1)
		h["ce_sequence"] = h["ce_sequence"][:19] + "0000009999-001"
		r.Value = []byte(data)
	}
}

// both does two changes to one record.
func both(a, b func(*kgo.Record, map[string]string)) func(*kgo.Record, map[string]string) {
	return func(r *kgo.Record, h map[string]string) { a(r, h); b(r, h) }
}

// otherKey makes a copy one of another key.
func otherKey(key string) func(*kgo.Record, map[string]string) {
	return func(r *kgo.Record, h map[string]string) { r.Key, h["ce_subject"] = []byte(key), key }
}

// Records that were forged or removed are all found in both topics.
func TestVerifyFindsTopics(t *testing.T) {
	t.Parallel()
	r := newRig(t, testenv.Postgres(t), testenv.Kafka(t).Brokers(), 3000)
	p := r.start()
	p.streaming()
	p.drained(time.Minute)
	r.exec(`UPDATE products SET price = 1.11, stock = 5 WHERE id <= 1500`)
	p.drained(time.Minute)
	f := r.newForger()
	plants := slices.Concat(f.plantLatest(), f.plantEvents())
	r.found(plants)
	p.kill()
}

func (f *forger) plantLatest() []planted {
	f.r.tb.Helper()
	plant := func(key string, problem verify.Problem, field, latest, events string) planted {
		return planted{"latest forged", key, problem, field, [2]verify.Side{verify.Latest, verify.Events}, [2]string{latest, events}}
	}
	alone := func(key string, problem verify.Problem, field, latest string) planted {
		return planted{"latest forged", key, problem, field, [2]verify.Side{verify.Latest}, [2]string{latest}}
	}
	const topic = 1
	f.forge(topic, "1001", replaced(`"price":"1.11"`, `"price":"9.99"`))
	f.forge(topic, "1002", both(replaced(`"stock":5`, `"stock":7`), set("ce_aggregateversion", "4")))
	f.forge(topic, "1003", set("ce_aggregateversion", "1"))
	f.forge(topic, "1004", func(r *kgo.Record, _ map[string]string) { r.Value = nil })
	f.forge(topic, "1005", set("ce_eventsoffset", "999999999"))
	f.forge(topic, "1006", set("ce_id", "00000000-0000-8000-8000-000000000000"))
	f.forge(topic, "1007", set("ce_xid", "4242"))
	f.forge(topic, "1008", func(r *kgo.Record, _ map[string]string) { r.Partition = (r.Partition + 1) % 6 })
	f.forge(topic, "1009", func(_ *kgo.Record, h map[string]string) { delete(h, "ce_type") })
	f.forge(topic, "1010", otherKey("7000001"))
	f.forge(topic, "1011", set("ce_sequence", "00000000FFFFFFFF-1-0000000042-001"))
	f.forge(topic, "1012", set("ce_time", "1970-01-01T00:00:00.000000Z"))
	f.forge(topic, "1013", func(r *kgo.Record, _ map[string]string) { r.Timestamp = r.Timestamp.Add(-time.Hour) })
	// Only rows above 1500 have one record; those below stand before the first of them.
	gone := f.firstOf(topic, 0, 1)
	f.policy("compact,delete")
	f.remove(topic, 0, gone.Offset+1)
	f.policy("compact")
	plants := []planted{
		plant("1001", verify.ValueDiffers, "price", `"9.99"`, `"1.11"`), plant("1002", verify.Unfounded, "version", `4`, `3`),
		alone("1003", verify.VersionBack, "version", `1`), plant("1004", verify.Missing, "", ``, `SKU-1004`),
		alone("1005", verify.WrongOffset, "ce_eventsoffset", `999999999`), plant("1006", verify.HeadersDiffer, "id", `0000`, ``),
		plant("1007", verify.HeadersDiffer, "xid", `4242`, ``), alone("1008", verify.WrongPartition, "", ``),
		alone("1009", verify.NotOurs, "", ``), plant("7000001", verify.Missing, "version", `3`, ``),
		plant("1011", verify.HeadersDiffer, "position", `FFFFFFFF`, ``),
		alone("1012", verify.WrongTime, "time", `1970-01-01`), alone("1013", verify.WrongTime, "time", ``),
	}
	for i := range plants {
		if plants[i].problem == verify.WrongPartition || plants[i].problem == verify.NotOurs {
			plants[i].sides = [2]verify.Side{}
		}
	}
	return append(plants, plant(gone.Key, verify.Missing, "version", ``, `1`))
}

func (f *forger) plantEvents() []planted {
	f.r.tb.Helper()
	plant := func(key string, problem verify.Problem, field string, sides [2]verify.Side, values ...string) planted {
		return planted{"event forged", key, problem, field, sides, [2]string(append(values, "", "")[:2])}
	}
	none, own := [2]verify.Side{}, [2]verify.Side{verify.Events}
	two := [2]verify.Side{verify.Events, verify.Events}
	with := func(side verify.Side) [2]verify.Side { return [2]verify.Side{side, verify.Events} }
	const topic = 0
	f.forge(topic, "1101", func(*kgo.Record, map[string]string) {})
	f.forge(topic, "1102", next(`{"old":{"price":"1.12"},"new":{"price":"1.13"},"reason":null}`))
	f.forge(topic, "1103", next(`{"old":{"price":"1.11"},"new":{"price":"1.13"},"reason":null}`))
	f.forge(topic, "1104", both(next(`{"old":{"price":"1.11"},"new":{"price":"1.11"},"reason":null}`), set("ce_aggregateversion", "7")))
	f.forge(topic, "1105", func(_ *kgo.Record, h map[string]string) { delete(h, "ce_id") })
	f.forge(topic, "1106", func(r *kgo.Record, _ map[string]string) { r.Partition = (r.Partition + 1) % 6 })
	f.forge(topic, "1107", both(next(`{"old":{"stock":5},"new":{"stock":5},"reason":null}`), set("ce_id", "00000000-0000-8000-8000-000000000000")))
	f.forge(topic, "1108", both(next(`{"old":{"stock":5},"new":{"stock":6},"reason":null}`), set("ce_sequence", "0000000000000001-1-0000000001-001")))
	f.forge(topic, "1109", next(`{"nonsense":1}`))
	f.forge(topic, "1110", both(otherKey("7000002"), set("ce_aggregateversion", "1")))
	f.forge(topic, "1111", next(`{"old":{},"new":{},"reason":null}`))
	f.forge(topic, "1112", next(`{"old":{"ghost":1},"new":{"stock":5},"reason":null}`))
	f.forge(topic, "1113", func(r *kgo.Record, _ map[string]string) { r.Key = nil })
	f.forge(topic, "1114", both(next(`{"old":{"stock":5},"new":{"stock":5},"reason":null}`), set("ce_time", "2999-01-01T00:00:00.000000Z")))
	gone := f.firstOf(topic, 1, 0)
	f.remove(topic, 1, gone.Offset+1)
	return []planted{
		plant("1101", verify.VersionAgain, "version", own, `3`),
		plant("1102", verify.WrongOld, "price", two, `"1.12"`, `"1.11"`),
		plant("1103", verify.ValueDiffers, "price", with(verify.Table), `"1.11"`, `"1.13"`),
		plant("1104", verify.GapInVersions, "version", own, `7`),
		plant("1105", verify.NotOurs, "", none),
		plant("1106", verify.WrongPartition, "", none),
		plant("1107", verify.WrongID, "id", own, `0000`),
		plant("1108", verify.OutOfOrder, "position", own, `0000000000000001`),
		plant("1109", verify.Unfoldable, "", none),
		plant("7000002", verify.Missing, "version", with(verify.State), ``, `1`),
		plant("1111", verify.Missing, "", with(verify.Table), `SKU-1111`, ``),
		plant("1112", verify.WrongOld, "ghost", own, `1`),
		plant("", verify.NotOurs, "", none),
		plant("1114", verify.WrongTime, "time", own, `2999-01-01`),
		plant(gone.Key, verify.GapInVersions, "version", own, ``),
	}
}
