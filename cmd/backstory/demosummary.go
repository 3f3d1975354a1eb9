package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"backstory/internal/screen"
	"backstory/transform"
)

// summary is how the demo ends.
type summary struct {
	Events      map[string]int `json:"events"` // by ce_type
	EventsTopic int            `json:"events_records"`
	LatestTopic int            `json:"latest_records"`
	Products    int            `json:"products"`
	Differences []string       `json:"differences"` // between folded events, latest topic and table
}

// sumUp waits until the topics say what the table says, which they must soon
// after the last change, and prints the summary. Differences that stay are an
// error.
func (d *demonstration) sumUp(ctx context.Context) error {
	products, differences, err := d.settle(ctx)
	if err != nil {
		return err
	}
	s := summary{
		Events: d.ledger.Types(), EventsTopic: d.ledger.Records(transform.Events), LatestTopic: d.ledger.Records(transform.Latest),
		Products: products, Differences: differences,
	}
	if d.asJSON {
		err = json.NewEncoder(d.out).Encode(map[string]summary{"summary": s}) // on one line, like the records
	} else {
		_, err = fmt.Fprint(d.out, d.render(s))
	}
	if err == nil && len(differences) > 0 {
		return differentError{fmt.Sprintf("the topics differ from the table in %d places", len(differences))}
	}
	return err
}

// settle compares the topics with the table until nothing differs, for
// drainTimeout at most. It returns the number of products and the differences.
func (d *demonstration) settle(ctx context.Context) (int, []string, error) {
	table, err := d.shop.Table(ctx, d.mapping.Tables[0])
	if err != nil {
		return 0, nil, err
	}
	deadline := time.NewTimer(drainTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		differences := d.ledger.Compare(table)
		if len(differences) == 0 {
			return len(table), []string{}, nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return len(table), differences, nil
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		}
	}
}

func (d *demonstration) render(s summary) string {
	style := d.screen.Style
	topics := d.mapping.Tables[0].Topics
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n", style.Paint(screen.Bold, "What the topics have"))
	for _, name := range slices.Sorted(maps.Keys(s.Events)) {
		fmt.Fprintf(&b, "  %6d  %s\n", s.Events[name], screen.TypeName(name))
	}
	fmt.Fprintf(&b, "  %6d  records in %s\n", s.EventsTopic, topics.Events)
	fmt.Fprintf(&b, "  %6d  records in %s\n", s.LatestTopic, topics.Latest)
	if len(s.Differences) == 0 {
		fmt.Fprintf(&b, "%s folding the events, reading the latest topic and reading the table give the same %d products\n",
			style.Paint(screen.Green, "✓"), s.Products)
	}
	for _, line := range s.Differences {
		fmt.Fprintf(&b, "%s %s\n", style.Paint(screen.Red, "✗"), line)
	}
	if d.scratch == nil {
		fmt.Fprintf(&b, "%s\n", style.Paint(screen.Dim, "· kept in "+d.dir))
	}
	return b.String()
}
