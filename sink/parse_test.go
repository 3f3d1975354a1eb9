package sink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go/protocol"
	"pgregory.net/rapid"

	"backstory/capture"
	"backstory/transform"
)

var productTable = &transform.Table{
	Schema: "public", Name: "products", Aggregate: "Product",
	Topics: transform.Topics{Events: "product.events", Latest: "product.latest"},
}

// someID is an id that tells what it was made from.
func someID(n int) (id transform.EventID) {
	binary.BigEndian.PutUint64(id[:], 0x1122334455667788)
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return id
}

// productSource is the source of productTable's records.
const productSource = "/postgres/1/legacy/public.products"

// someEvent is an event with every field set but those of the rarer headers.
func someEvent(key string, n int) transform.Stored {
	return transform.Stored{
		Source: productSource,
		Event: transform.Event{
			ID: someID(n), Type: "PriceChanged.v1", Table: productTable, Key: []byte(key), Version: uint64(n) + 1,
			Place: transform.Place{Pos: capture.Position{LSN: 0x15A2F30 + capture.LSN(n), Kind: capture.KindChange, Index: 42}, Index: 1},
			XID:   77, Time: 1764000000123456 + int64(n), Op: capture.OpUpdate,
			Data: fmt.Appendf(nil, `{"old":{},"new":{"n":%d},"reason":null}`, n),
		},
	}
}

// someState is the record of the latest topic for the same event; nil is a tombstone.
func someState(key string, n int, below int64, image []byte) transform.Stored {
	s := someEvent(key, n)
	s.Topic, s.EventsOffset = transform.Latest, below
	s.Type, s.Data, s.State = "ProductState.v1", nil, image
	return s
}

// headersOf writes the headers as the design has them, independently of the
// writing half.
func headersOf(s *transform.Stored) []protocol.Header {
	var h []protocol.Header
	add := func(name, value string) { h = append(h, protocol.Header{Key: name, Value: []byte(value)}) }
	add("ce_specversion", "1.0")
	add("content-type", "application/json")
	if s.Topic == transform.Latest {
		add("ce_source", s.Source+"#latest")
	} else {
		add("ce_source", s.Source)
	}
	add("ce_aggregatetype", s.Table.Aggregate)
	if s.Former != nil {
		add("ce_formersource", strings.Join(s.Former, " "))
	}
	add("ce_id", fmt.Sprintf("%x-%x-%x-%x-%x", s.ID[:4], s.ID[4:6], s.ID[6:8], s.ID[8:10], s.ID[10:]))
	add("ce_type", s.Type)
	add("ce_subject", string(s.Key))
	add("ce_aggregateversion", fmt.Sprint(s.Version))
	add("ce_time", time.UnixMicro(s.Time).UTC().Format("2006-01-02T15:04:05.000000Z"))
	add("ce_sequence", fmt.Sprintf("%016X-%d-%010d-%03d", uint64(s.Place.Pos.LSN), s.Place.Pos.Kind, s.Place.Pos.Index, s.Place.Index))
	add("ce_op", s.Op.String())
	if s.XID != 0 {
		add("ce_xid", fmt.Sprint(s.XID))
	}
	if s.Cause != transform.NoCause {
		add("ce_cause", s.Cause.String())
	}
	if s.Related != nil {
		add("ce_related", string(s.Related))
	}
	if c := s.Context; c != nil {
		for _, v := range []struct{ name, value string }{
			{"ce_actor", c.Actor}, {"ce_correlationid", c.CorrelationID}, {"ce_causationid", c.CausationID},
		} {
			if v.value != "" {
				add(v.name, v.value)
			}
		}
	}
	if s.Topic == transform.Latest {
		add("ce_eventsoffset", fmt.Sprint(s.EventsOffset))
	}
	return h
}

func valueOf(s *transform.Stored) []byte {
	if s.Topic == transform.Latest {
		return s.State
	}
	return s.Data
}

// recordOf decodes a batch that has the record alone.
func recordOf(tb testing.TB, offset int64, key, value []byte, headers []protocol.Header) *record {
	tb.Helper()
	var d decoder
	d.reset(handBatch(offset, 0, 0, []kept{{Offset: offset, Key: key, Value: value, Headers: headers}}), offset)
	r := new(record)
	if ok, err := d.next(r); !ok {
		tb.Fatalf("no record: %v", err)
	}
	return r
}

func TestParse(t *testing.T) {
	t.Parallel()
	rich := someEvent("a/b%2F", 3)
	rich.Op, rich.Cause, rich.Related = capture.OpDelete, transform.KeyChanged, []byte("")
	rich.Context = &capture.Context{Actor: "ann", CorrelationID: "c-1", CausationID: "c-0"}
	imported := someEvent("", 0)
	imported.XID, imported.Op, imported.Place.Pos.Kind = 0, capture.OpRead, capture.KindBackfill
	imported.Place.Index, imported.Version = 1000, 1<<62
	adopted := someEvent("1", 1)
	adopted.Former = []string{"/postgres/9/legacy/public.products"}
	adoptedState := someState("1", 4, 7, nil)
	adoptedState.Former = []string{"/postgres/9/legacy/public.products", "/postgres/1/legacy/public.wares"}
	tests := []struct {
		name string
		want transform.Stored
	}{
		{"event", someEvent("1", 1)},
		{"all headers", rich},
		{"backfill, empty key, wide index", imported},
		{"state", someState("1", 4, 1234567, []byte(`{"id":1}`))},
		{"state at 0", someState("1", 4, 0, []byte(`{"id":1}`))},
		{"tombstone", someState("2", 5, 17, nil)},
		{"after another source", adopted},
		{"state after two others", adoptedState},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.want.Partition, tt.want.Offset = 3, 99
			rec := recordOf(t, 99, tt.want.Key, valueOf(&tt.want), headersOf(&tt.want))
			p := parser{topic: "t", table: productTable, kind: tt.want.Topic}
			var got transform.Stored
			if ok, err := p.parse(rec, 3, &got); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			// Without a mapping the same comes out, but for the table.
			p = parser{topic: "t"}
			if ok, err := p.parse(rec, 3, &got); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if got.Table.Aggregate != "Product" || got.Table.Topics.Events != "t" {
				t.Errorf("without a mapping the table is %+v", got.Table)
			}
			got.Table = productTable
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	with := func(name, value string) func([]protocol.Header) []protocol.Header {
		return func(h []protocol.Header) []protocol.Header {
			for i := range h {
				if h[i].Key == name {
					h[i].Value = []byte(value)
				}
			}
			return h
		}
	}
	without := func(name string) func([]protocol.Header) []protocol.Header {
		return func(h []protocol.Header) []protocol.Header {
			for i := range h {
				if h[i].Key == name {
					return append(h[:i:i], h[i+1:]...)
				}
			}
			return h
		}
	}
	type change = func([]protocol.Header) []protocol.Header
	tests := map[string]change{
		"no headers":           func([]protocol.Header) []protocol.Header { return nil },
		"another event format": with("ce_specversion", "0.3"),
		"another key":          with("ce_subject", "2"),
		"another aggregate":    with("ce_aggregatetype", "Order"),
		"short id":             with("ce_id", "11223344-5566-7788-0000-00000000000"),
		"id without dashes":    with("ce_id", strings.Repeat("1", 36)),
		"id of other letters":  with("ce_id", "1122334x-5566-7788-0000-000000000001"),
		"version 0":            with("ce_aggregateversion", "0"),
		"no version":           with("ce_aggregateversion", ""),
		"negative version":     with("ce_aggregateversion", "-1"),
		"huge version":         with("ce_aggregateversion", "99999999999999999999"),
		"month 13":             with("ce_time", "2026-13-01T00:00:00.000000Z"),
		"day 30 of February":   with("ce_time", "2026-02-30T00:00:00.000000Z"),
		"hour 24":              with("ce_time", "2026-02-03T24:00:00.000000Z"),
		"second 60":            with("ce_time", "2026-02-03T23:59:60.000000Z"),
		"no fraction":          with("ce_time", "2026-02-03T23:59:59Z"),
		"local time":           with("ce_time", "2026-02-03T23:59:59.000000+"),
		"lower-case LSN":       with("ce_sequence", "00000000015a2f30-1-0000000042-001"),
		"kind 2":               with("ce_sequence", "00000000015A2F30-2-0000000042-001"),
		"short sequence":       with("ce_sequence", "00000000015A2F30-1-0000000042-01"),
		"index above 32 bits":  with("ce_sequence", "00000000015A2F30-1-4294967296-001"),
		"event above 16 bits":  with("ce_sequence", "00000000015A2F30-1-0000000042-65536"),
		"unknown op":           with("ce_op", "upsert"),
		"xid above 32 bits":    with("ce_xid", "4294967296"),
		"unknown cause": func(h []protocol.Header) []protocol.Header {
			return append(h, protocol.Header{Key: "ce_cause", Value: []byte("whim")})
		},
		"a state": func(h []protocol.Header) []protocol.Header {
			return append(h, protocol.Header{Key: "ce_eventsoffset", Value: []byte("1")})
		},
		"a header twice":         func(h []protocol.Header) []protocol.Header { return append(h, h[4]) },
		"empty op":               with("ce_op", ""),
		"without ce_specversion": without("ce_specversion"), "without ce_id": without("ce_id"), "without ce_source": without("ce_source"), "without ce_type": without("ce_type"),
		"without ce_subject": without("ce_subject"), "without ce_aggregatetype": without("ce_aggregatetype"),
		"without ce_aggregateversion": without("ce_aggregateversion"), "without ce_time": without("ce_time"),
		"without ce_sequence": without("ce_sequence"), "without ce_op": without("ce_op"),
	}
	for name, fn := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := someEvent("1", 1)
			rec := recordOf(t, 5, s.Key, s.Data, fn(headersOf(&s)))
			p := parser{topic: "product.events", table: productTable}
			ok, err := p.parse(rec, 2, new(transform.Stored))
			var refusal *Refusal
			if ok || !errors.As(err, &refusal) {
				t.Fatalf("got %v, %v; want a refusal", ok, err)
			}
			for _, want := range []string{"product.events", "partition 2", "offset 5"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not name %s", err, want)
				}
			}
		})
	}
}

func TestParseValueAndKey(t *testing.T) {
	t.Parallel()
	event, state := someEvent("1", 1), someState("1", 1, 2, []byte("{}"))
	tests := []struct {
		name       string
		kind       transform.Topic
		key, value []byte
		headers    []protocol.Header
	}{
		{"null key", transform.Events, nil, event.Data, headersOf(&event)},
		{"event without a value", transform.Events, event.Key, nil, headersOf(&event)},
		{"event among states", transform.Latest, event.Key, event.Data, headersOf(&event)},
		{"state among events", transform.Events, state.Key, state.State, headersOf(&state)},
	}
	for _, tt := range tests {
		p := parser{topic: "t", table: productTable, kind: tt.kind}
		ok, err := p.parse(recordOf(t, 5, tt.key, tt.value, tt.headers), 0, new(transform.Stored))
		var refusal *Refusal
		if ok || !errors.As(err, &refusal) {
			t.Errorf("%s: got %v, %v; want a refusal", tt.name, ok, err)
		}
	}
}

func TestParseBarrier(t *testing.T) {
	t.Parallel()
	rec := recordOf(t, 5, []byte(BarrierKey), nil, []protocol.Header{{Key: HeaderBarrier, Value: []byte("1")}})
	p := parser{topic: "t", table: productTable}
	if ok, err := p.parse(rec, 0, new(transform.Stored)); ok || err != nil {
		t.Errorf("got %v, %v; want it passed over", ok, err)
	}
}

// Headers may come in any order, and with others among them.
func TestParseOrder(t *testing.T) {
	t.Parallel()
	want := someEvent("k", 9)
	want.Context = &capture.Context{Actor: "ann"}
	rapid.Check(t, func(t *rapid.T) {
		h := append(headersOf(&want), protocol.Header{Key: "traceparent", Value: []byte("00-1")}, protocol.Header{Key: "x"})
		h = rapid.Permutation(h).Draw(t, "headers")
		var d decoder
		d.reset(handBatch(0, 0, 0, []kept{{Key: want.Key, Value: want.Data, Headers: h}}), 0)
		var rec record
		if ok, err := d.next(&rec); !ok {
			t.Fatal(err)
		}
		p := parser{topic: "t", table: productTable}
		var got transform.Stored
		if ok, err := p.parse(&rec, 0, &got); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestParseTimeProperty(t *testing.T) {
	t.Parallel()
	var clock timeParser
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Int64Range(-62135596800000000, 253402300799999999).Draw(t, "time")
		got, ok := clock.parse([]byte(time.UnixMicro(want).UTC().Format("2006-01-02T15:04:05.000000Z")))
		if !ok || got != want {
			t.Fatalf("got %d, %v; want %d", got, ok, want)
		}
	})
}

func TestParseRef(t *testing.T) {
	t.Parallel()
	got, ok := parseRef([]byte("kafka:dead.letters/3/42"))
	if want := (deadLetterRef{"dead.letters", 3, 42}); !ok || got != want {
		t.Errorf("got %v, %v; want %v", got, ok, want)
	}
	for _, bad := range []string{"", "kafka:", "kafka:t/1", "kafka:t/1/", "kafka:t/-1/2", "kafka:t/1/-2", "kafka:/1/2", "s3:t/1/2", "kafka:t/1/2/3"} {
		if _, ok := parseRef([]byte(bad)); ok {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	event, state := someEvent("1", 1), someState("1", 1, 2, []byte("{}"))
	event.Context = &capture.Context{Actor: "ann", CorrelationID: "c-1"}
	events := recordOf(t, 0, event.Key, event.Data, headersOf(&event))
	states := recordOf(t, 0, state.Key, state.State, headersOf(&state))
	for _, tt := range []struct {
		rec *record
		p   parser
	}{{events, parser{topic: "t", table: productTable}}, {states, parser{topic: "t", table: productTable, kind: transform.Latest}}} {
		var s transform.Stored
		if n := testing.AllocsPerRun(100, func() {
			if _, err := tt.p.parse(tt.rec, 0, &s); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("topic %s: %v allocations a record", tt.p.kind, n)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := someEvent("1", 1)
	f.Add(handBatch(0, 0, 0, []kept{{Key: s.Key, Value: s.Data, Headers: headersOf(&s)}})[batchRecordsAt:])
	f.Fuzz(func(t *testing.T, records []byte) {
		d := decoder{records: records, left: 1, lastSeen: -1, lastDelta: 10, fixedTime: -1}
		var rec record
		if err := d.record(&rec); err != nil {
			return
		}
		p := parser{topic: "t"}
		var got transform.Stored
		ok, err := p.parse(&rec, 0, &got)
		if !ok {
			return
		}
		if err != nil || got.Version == 0 || got.Table == nil || got.Type != string(p.values[slotType]) {
			t.Fatalf("passed: %+v, %v", got, err)
		}
		// What passes is what would be written.
		written := headersOf(&got)
		for _, h := range written {
			if slot := slotOf([]byte(h.Key), 0); slot >= slotID && slot != slotID && string(p.values[slot]) != string(h.Value) &&
				slot != slotAggregateVersion && slot != slotXID && slot != slotEventsOffset && slot != slotSequence {
				t.Fatalf("header %s is %q, read as %q", h.Key, p.values[slot], h.Value)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	s := someEvent("12345", 1)
	rec := recordOf(b, 0, s.Key, s.Data, headersOf(&s))
	p := parser{topic: "t", table: productTable}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.parse(rec, 0, &s); err != nil {
			b.Fatal(err)
		}
	}
}
