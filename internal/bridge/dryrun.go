package bridge

import (
	"encoding/json"
	"sync"

	"backstory/capture"
	"backstory/transform"
)

// maxExamples bounds the differences that a dry run shows.
const maxExamples = 20

// DryRun is what a run would have published. The first stage fills it, others
// read it.
type DryRun struct {
	tally tally

	mu       sync.Mutex
	types    map[string]int64
	examples []Difference
}

// Difference is one event that a dry run would have published.
type Difference struct {
	Key  string          `json:"key"`
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// dryRunJSON is how a DryRun is shown.
type dryRunJSON struct {
	Events   map[string]int64 `json:"events"` // by type
	Examples []Difference     `json:"examples"`
}

func newDryRun() *DryRun { return &DryRun{types: map[string]int64{}} }

// add takes in events that are not to be published.
func (d *DryRun) add(events []transform.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range events {
		e := &events[i]
		d.types[e.Type]++
		if len(d.examples) < maxExamples {
			d.examples = append(d.examples, Difference{Key: string(e.Key), Type: e.Type, Data: append([]byte(nil), e.Data...)})
		}
	}
}

// MarshalJSON shows the counts and the examples so far.
func (d *DryRun) MarshalJSON() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.Marshal(dryRunJSON{d.types, d.examples})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (d *DryRun) UnmarshalJSON(text []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var v dryRunJSON
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	d.types, d.examples = v.Events, v.Examples
	return nil
}

// Events are the numbers of events by type.
func (d *DryRun) Events() map[string]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	events := make(map[string]int64, len(d.types))
	for k, n := range d.types {
		events[k] = n
	}
	return events
}

// Examples are the first differences.
func (d *DryRun) Examples() []Difference {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]Difference(nil), d.examples...)
}

// dryStates is the state as a dry run sees it: it takes no writes.
type dryStates struct{ transform.States }

func (dryStates) Put(uint16, []byte, transform.Entry) error { return nil }
func (dryStates) Again(uint16, []byte) error                { return nil }
func (dryStates) SetOldImage(capture.Position, []byte)      {}
