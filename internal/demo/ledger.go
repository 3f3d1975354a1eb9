package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"backstory/transform"
)

// Ledger keeps books of both topics as a consumer would that knows nothing but
// their records: it folds the events, and it keeps the newest value of each key
// of the latest topic. It may be used from several goroutines.
type Ledger struct {
	mu       sync.Mutex
	types    map[string]int
	counts   [2]int // records by transform.Topic
	versions map[string]uint64
	folded   map[string]Row // by key
	latest   map[string]Row
	wrong    []string
}

// Row is one product: field → JSON value.
type Row map[string]json.RawMessage

// mostWrong bounds the list of what is wrong.
const mostWrong = 20

// NewLedger returns empty books.
func NewLedger() *Ledger {
	return &Ledger{types: map[string]int{}, versions: map[string]uint64{}, folded: map[string]Row{}, latest: map[string]Row{}}
}

// Add books one record.
func (l *Ledger) Add(r *transform.Stored) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[r.Topic]++
	if r.Topic == transform.Latest {
		return l.addState(string(r.Key), r.State)
	}
	return l.addEvent(string(r.Key), r)
}

func (l *Ledger) addState(key string, state []byte) error {
	if state == nil {
		delete(l.latest, key)
		return nil
	}
	var row Row
	if err := json.Unmarshal(bytes.Clone(state), &row); err != nil {
		return fmt.Errorf("state of %s: %w", key, err)
	}
	l.latest[key] = row
	return nil
}

func (l *Ledger) addEvent(key string, r *transform.Stored) error {
	l.types[r.Type]++
	if want := l.versions[key] + 1; r.Version != want {
		l.fault("%s: version %d follows %d", key, r.Version, want-1)
	}
	l.versions[key] = r.Version
	var data struct{ Old, New Row }
	if err := json.Unmarshal(bytes.Clone(r.Data), &data); err != nil {
		return fmt.Errorf("event %d of %s: %w", r.Version, key, err)
	}
	if len(data.New) == 0 { // deleted
		delete(l.folded, key)
		return nil
	}
	row := l.folded[key]
	if row == nil {
		row = Row{}
		l.folded[key] = row
	}
	for field, value := range data.Old {
		if !bytes.Equal(row[field], value) {
			l.fault("%s: version %d says that %s was %s; it was %s", key, r.Version, field, value, row[field])
		}
	}
	for field, value := range data.New {
		row[field] = value
	}
	return nil
}

func (l *Ledger) fault(format string, args ...any) {
	if len(l.wrong) < mostWrong {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

// Types returns how many events there are of each ce_type.
func (l *Ledger) Types() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.types)
}

// Records returns how many records were read of a topic.
func (l *Ledger) Records(topic transform.Topic) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[topic]
}

// Compare returns what is wrong: in the events themselves, and where the folded
// events, the latest topic and the table differ. Empty: all three agree.
func (l *Ledger) Compare(table map[string]Source) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	found := slices.Clone(l.wrong)
	for key, row := range table {
		found = append(found, row.differences("events, "+key, l.folded[key])...)
		found = append(found, row.differences("latest, "+key, l.latest[key])...)
	}
	for _, topic := range []struct {
		name string
		rows map[string]Row
	}{{"events", l.folded}, {"latest", l.latest}} {
		for key := range topic.rows {
			if _, ok := table[key]; !ok {
				found = append(found, fmt.Sprintf("%s, %s: there, but not in the table", topic.name, key))
			}
		}
	}
	slices.Sort(found)
	if len(found) > mostWrong {
		found = append(found[:mostWrong], fmt.Sprintf("and %d more", len(found)-mostWrong))
	}
	return found
}
