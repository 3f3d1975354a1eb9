package sink

import (
	"encoding/hex"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// parseID reads a UUID of 36 characters.
func parseID(b []byte) (id transform.EventID, ok bool) {
	if len(b) != 36 || b[8] != '-' || b[13] != '-' || b[18] != '-' || b[23] != '-' {
		return id, false
	}
	for _, g := range [...]struct{ to, from, n int }{{0, 0, 4}, {4, 9, 2}, {6, 14, 2}, {8, 19, 2}, {10, 24, 6}} {
		if _, err := hex.Decode(id[g.to:g.to+g.n], b[g.from:g.from+2*g.n]); err != nil {
			return id, false
		}
	}
	return id, true
}

// idText is the id as headers and messages have it.
func idText(id transform.EventID) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseUint reads decimal digits up to limit.
func parseUint(b []byte, limit uint64) (uint64, bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, n <= limit
}

// The only form of ce_time, and how much of it is whole seconds.
const (
	timeForm   = "2006-01-02T15:04:05.000000Z"
	secondForm = "2006-01-02T15:04:05"
)

// timeParser reads times. It works out a second once, as many records share one.
type timeParser struct {
	text   [len(secondForm)]byte
	micros int64 // of text; text is all zero at the start
}

// parse reads timeForm as microseconds since 1970-01-01 UTC.
func (t *timeParser) parse(b []byte) (int64, bool) {
	if len(b) != len(timeForm) || b[19] != '.' || b[26] != 'Z' {
		return 0, false
	}
	if string(b[:19]) != string(t.text[:]) {
		micros, ok := parseSecond(b[:19])
		if !ok {
			return 0, false
		}
		copy(t.text[:], b)
		t.micros = micros
	}
	fraction, ok := parseUint(b[20:26], 999_999)
	return t.micros + int64(fraction), ok
}

// parseSecond reads secondForm as microseconds since 1970-01-01 UTC.
func parseSecond(b []byte) (int64, bool) {
	if b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' {
		return 0, false
	}
	var f [6]int
	for i, at := range [...][2]int{{0, 4}, {5, 7}, {8, 10}, {11, 13}, {14, 16}, {17, 19}} {
		n, ok := parseUint(b[at[0]:at[1]], 9999)
		if !ok {
			return 0, false
		}
		f[i] = int(n)
	}
	t := time.Date(f[0], time.Month(f[1]), f[2], f[3], f[4], f[5], 0, time.UTC)
	if t.Month() != time.Month(f[1]) || t.Day() != f[2] || t.Hour() != f[3] || t.Minute() != f[4] || t.Second() != f[5] {
		return 0, false
	}
	return t.UnixMicro(), true
}

// parsePlace reads ce_sequence: LSN in 16 hexadecimal digits, kind, ten digits of
// the change's index, three digits and more of the event's.
func parsePlace(b []byte) (p transform.Place, ok bool) {
	const kindAt, indexAt, eventAt = 17, 19, 30
	if len(b) < eventAt+3 || b[kindAt-1] != '-' || b[indexAt-1] != '-' || b[eventAt-1] != '-' {
		return p, false
	}
	for _, c := range b[:kindAt-1] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return p, false
		}
		p.Pos.LSN = p.Pos.LSN<<4 | capture.LSN(c)
	}
	p.Pos.Kind = capture.Kind(b[kindAt] - '0')
	index, ok1 := parseUint(b[indexAt:eventAt-1], 1<<32-1)
	event, ok2 := parseUint(b[eventAt:], 1<<16-1)
	p.Pos.Index, p.Index = uint32(index), uint16(event)
	return p, ok1 && ok2 && p.Pos.Kind <= capture.KindChange
}

// parseOp reads ce_op.
func parseOp(b []byte) (capture.Op, bool) {
	for op := capture.OpInsert; op <= capture.OpRead; op++ {
		if op.String() == string(b) {
			return op, true
		}
	}
	return 0, false
}

// parseCause reads ce_cause, which may be missing.
func parseCause(b []byte) (transform.Cause, bool) {
	if b == nil {
		return transform.NoCause, true
	}
	for c := transform.Truncated; c <= transform.SchemaChange; c++ {
		if c.String() == string(b) {
			return c, true
		}
	}
	return transform.NoCause, false
}
