package screen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// Screen renders records for people. Columns widen with what has been shown, so
// that lines stand under each other. It is for one goroutine.
type Screen struct {
	Style Style
	// Zone is that of the times shown.
	Zone *time.Location

	topic, key, version, kind int // widths so far
}

// The least and the most that a column takes of a line.
const (
	leastKey, mostKey   = 4, 24
	leastKind, mostKind = 15, 28
)

// narrow is the width below which time and topic are shortened, so that what
// happened has room beside them.
const narrow = 100

// Render returns one record as a line without its end. topic is the name to
// show for it.
func (s *Screen) Render(topic string, r *transform.Stored) string {
	l := &line{style: s.Style}
	latest := r.Topic == transform.Latest
	dim := func(ink Ink) Ink {
		if latest {
			return Dim // the history is what people follow; the state accompanies it
		}
		return ink
	}
	at, key := time.UnixMicro(r.Time).In(s.Zone).Format("15:04:05.000"), printable(string(r.Key))
	if s.Style.Width > 0 && s.Style.Width < narrow {
		at, topic = at[:len("15:04:05")], topic[strings.LastIndexByte(topic, '.')+1:]
		key = ellipsis(key, mostKey)
	}
	version := fmt.Sprintf("v%d", r.Version)
	kind := TypeName(r.Type)
	if latest {
		kind = "state"
		if r.State == nil {
			kind = "tombstone"
		}
	}
	s.widen(topic, key, version, kind)
	l.pad(Dim, at, len(at))
	l.pad(Dim, topic, s.topic)
	l.pad(dim(Bold), key, s.key)
	l.pad(dim(Plain), version, s.version)
	l.pad(dim(inkOf(r)), kind, s.kind)
	if latest {
		l.add(Dim, list(members(r.State)))
	} else {
		s.change(l, r)
	}
	return l.String()
}

func (s *Screen) widen(topic, key, version, kind string) {
	s.topic = max(s.topic, len(topic))
	s.key = min(max(s.key, leastKey, len(key)), mostKey)
	s.version = max(s.version, 3, len(version))
	s.kind = min(max(s.kind, leastKind, len(kind)), mostKind)
}

// change writes what an event says: the fields with old and new value, then why.
func (s *Screen) change(l *line, r *transform.Stored) {
	p := parsePayload(r.Data)
	because := why(r, p.reason)
	if len(p.old) > 0 && len(p.new) > 0 {
		fields(l, p)
		if because != "" {
			l.add(Plain, "  ")
		}
		l.add(Cyan, because)
		return
	}
	// A whole row may be longer than the line: the reason comes before it.
	l.add(Cyan, because)
	if because != "" {
		l.add(Plain, "  ")
	}
	if len(p.new) == 0 && len(p.old) > 0 {
		l.add(Dim, "was "+list(p.old))
	} else {
		l.add(Plain, list(p.new))
	}
}

// fields writes "price 19.90 → 17.90, stock → 3".
func fields(l *line, p payload) {
	for i, m := range p.new {
		if i > 0 {
			l.add(Plain, ", ")
		}
		l.add(Dim, printable(m.name)+" ")
		if old, ok := find(p.old, m.name); ok {
			l.add(Plain, shown(old)+" ")
		}
		l.add(Dim, "→ ")
		l.add(Bold, shown(m.value))
	}
}

// why says reason, actor and cause, each if there is one: "· spring sale (ann)".
func why(r *transform.Stored, reason json.RawMessage) string {
	var words []string
	if len(reason) > 0 && !bytes.Equal(reason, []byte("null")) {
		words = append(words, "· "+shown(reason))
	}
	if r.Context != nil && r.Context.Actor != "" {
		words = append(words, "("+printable(r.Context.Actor)+")")
	}
	switch {
	case r.Cause == transform.KeyChanged && r.Op == capture.OpDelete:
		words = append(words, "· key changed to "+printable(string(r.Related)))
	case r.Cause == transform.KeyChanged:
		words = append(words, "· key changed from "+printable(string(r.Related)))
	case r.Cause != transform.NoCause:
		words = append(words, "· "+r.Cause.String())
	}
	return strings.Join(words, " ")
}

// list writes "sku A-42, price 17.90".
func list(all []member) string {
	words := make([]string, len(all))
	for i, m := range all {
		words[i] = printable(m.name) + " " + ellipsis(shown(m.value), memberRunes)
	}
	return strings.Join(words, ", ")
}

// inkOf colours an event by what it does to its aggregate.
func inkOf(r *transform.Stored) Ink {
	switch r.Op {
	case capture.OpInsert:
		return Green
	case capture.OpDelete, capture.OpTruncate:
		return Red
	case capture.OpRead:
		return Blue
	}
	return Yellow
}

// TypeName is a ce_type for people: without prefix and format version,
// PriceChanged for com.example.legacy.PriceChanged.v1.
func TypeName(ceType string) string {
	name := ceType
	if i := strings.LastIndex(name, ".v"); i > 0 {
		name = name[:i]
	}
	return printable(name[strings.LastIndexByte(name, '.')+1:])
}
