package sink

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"backstory/transform"
)

// Each record is handed out once, whatever is written between the end that a call
// has asked for and the answers that it gets.
func TestScannerHandsOutEachRecordOnce(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 2)
	s, err := OpenScanner(t.Context(), c.producer().cfg, productTable, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want, got := map[string]bool{}, map[string]int{}
	write := func(round int) {
		for part := range int32(testPartitions) {
			for _, r := range c.write("product.events", part, someEvents(1000*round, 20)...) {
				want[fmt.Sprintf("%d/%d", r.Partition, r.Offset)] = true
			}
		}
	}
	for round := range 6 {
		write(2 * round)
		err := s.Advance(t.Context(), transform.Events, func(r *Scanned) error {
			if len(got) == round*120 {
				write(2*round + 1) // now, so that later answers reach beyond the end
			}
			got[fmt.Sprintf("%d/%d", r.Partition, r.Offset)]++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err = s.Advance(t.Context(), transform.Events, func(r *Scanned) error {
		got[fmt.Sprintf("%d/%d", r.Partition, r.Offset)]++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for at := range want {
		if got[at] != 1 {
			t.Errorf("record %s: handed out %d times", at, got[at])
		}
	}
	for _, span := range s.Spans(transform.Events) {
		if span.Start != 0 || span.End != 240 {
			t.Errorf("got %+v, want 0 to 240", span)
		}
	}
}

// A record that the bridge can't have written ends nothing, and a key in a
// partition that is not its own is told.
func TestScannerTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 1)
	events := someEvents(0, 1)
	home := partitionOf(murmur2(events[0].Key), testPartitions)
	c.write("product.events", home, events...)
	foreign := kgoRecord("product.events", home, []byte("stranger"), []byte("hello"), nil)
	c.send(foreign, &kgo.Record{Topic: "product.events", Partition: home, Value: []byte("no key")})
	astray := someEvents(0, 1)[0]
	c.send(kgoRecord("product.events", (home+1)%testPartitions, astray.Key, astray.Data, headersOf(&astray)))
	s, err := OpenScanner(t.Context(), c.producer().cfg, productTable, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	away := 0
	var wrong []Scanned
	err = s.Advance(t.Context(), transform.Events, func(r *Scanned) error {
		if r.Problem != "" {
			wrong = append(wrong, Scanned{Problem: r.Problem, Stored: transform.Stored{Event: transform.Event{Key: append([]byte{}, r.Key...)}, Offset: r.Offset}})
		} else if r.Home != r.Partition {
			away++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if away != 1 {
		t.Errorf("%d records away from home, want 1", away)
	}
	if len(wrong) != 2 || string(wrong[0].Key) != "stranger" || wrong[0].Offset != 1 || !strings.Contains(wrong[0].Problem, "ce_specversion is missing") {
		t.Errorf("got %+v", wrong)
	}
}

// A topic that is not there is refused soon, with its name.
func TestScannerWithoutTopic(t *testing.T) {
	t.Parallel()
	_, c := fakeCluster(t, 1)
	absent := *productTable
	absent.Topics.Latest = "no.such"
	_, err := OpenScanner(t.Context(), c.producer().cfg, &absent, slog.New(slog.DiscardHandler))
	wantRefusal(t, err, "no.such")
}
