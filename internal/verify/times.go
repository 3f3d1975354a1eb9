package verify

import (
	"encoding/json"
	"fmt"
	"time"

	"backstory/capture"
	"backstory/sink"
)

// earliest is the first moment that Postgres counts from, in microseconds since
// 1970: a record of before was never given its time.
const earliest = 946_684_800_000_000

// clockTolerance is how far the time of a record may lie ahead of the clocks of this
// machine and of the database, whichever is later.
const clockTolerance = time.Minute

// rememberedTimes is how many positions the time of their changes is kept for. They
// displace one another: a commit's events lie close together in all partitions.
const rememberedTimes = 1 << 16

// times checks the times of the records of both topics.
type times struct {
	report func(Difference)
	now    func() time.Time // by the later of the two clocks, or a little before
	ahead  func() time.Time // the same, asked for at this moment
	of     []moment
}

// moment is the time of the changes of one commit, or of one chunk.
type moment struct {
	lsn    capture.LSN
	kind   capture.Kind
	time   int64
	key    string
	offset int64
}

func newTimes(report func(Difference), ahead func() time.Time) *times {
	return &times{report: report, now: time.Now, ahead: ahead, of: make([]moment, rememberedTimes)}
}

// check checks a record for itself, and with shared against the others of its
// position: those of the same cluster and timeline, where a position is one commit.
func (t *times) check(s *sink.Scanned, side Side, shared bool, d Difference) {
	d.Problem, d.Field, d.Values = WrongTime, "time", []Value{{side, clock(s.Time)}}
	limit := func(now time.Time) int64 { return now.Add(clockTolerance).UnixMicro() }
	switch {
	case s.Time < earliest:
		d.Detail = "no change is of before 2000: the record was never given its time"
		t.report(d)
		return
	case s.Time > limit(t.now()) && s.Time > limit(t.ahead()):
		d.Detail = "it lies in the future"
		t.report(d)
		return
	case s.Timestamp != s.Time/1000:
		d.Values = append(d.Values, Value{side, clock(s.Timestamp * 1000)})
		d.Detail = "the first is ce_time, the second the record's timestamp"
		t.report(d)
		return
	}
	if shared {
		t.compare(s, d)
	}
}

// compare holds a record against the one of its position that came before.
func (t *times) compare(s *sink.Scanned, d Difference) {
	pos := s.Place.Pos
	m := &t.of[scattered(pos.LSN)%rememberedTimes]
	switch {
	case m.lsn != pos.LSN || m.kind != pos.Kind || m.time == 0:
		*m = moment{lsn: pos.LSN, kind: pos.Kind, time: s.Time, key: string(s.Key), offset: s.Offset}
	case m.time != s.Time:
		d.Values = append(d.Values, Value{Events, clock(m.time)})
		d.Detail = fmt.Sprintf("the second is that of key %q, offset %d, of the same commit or chunk", m.key, m.offset)
		t.report(d)
	}
}

// clock is a time as ce_time has it.
func clock(micros int64) json.RawMessage {
	return quoted(time.UnixMicro(micros).UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
}
