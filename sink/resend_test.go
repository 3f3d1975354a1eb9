package sink_test

import (
	"fmt"
	"math"
	"testing"

	"backstory/internal/testenv"
	"backstory/transform"
)

// TestLateRequest has the request of a former session arrive when its successor
// has fenced, with the successor's records there or not, also in partitions that
// nobody wrote before. The broker refuses it; without the fence it takes it.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	for _, writes := range []bool{false, true} {
		t.Run(fmt.Sprintf("successor writes %v", writes), func(t *testing.T) {
			t.Parallel()
			name := cluster.Name("late")
			m := shop(name, 4)
			former := fenced(t, config(cluster.Brokers()), m, name)
			mk := newMaker(m).recent()
			publish(t, former, mk.change("a", "PriceChanged"))
			want := "a/1 "
			late, err := former.Encode(mk.many(40))
			if err != nil {
				t.Fatal(err)
			}
			late.Stamp()
			latter := fenced(t, config(cluster.Brokers()), m, name)
			if writes {
				publish(t, latter, newMaker(m).change("b", "PriceChanged"))
				want = "a/1 b/1 "
				if partitionOfKey("a", 4) > partitionOfKey("b", 4) {
					want = "b/1 a/1 "
				}
			}
			former.Revive()
			if err := late.Events(within(t)); !restarts(err) {
				t.Errorf("got %v, want a SessionError", err)
			}
			if got := story(consume(t, cluster.Brokers(), name+".events")); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	t.Run("no successor", func(t *testing.T) {
		t.Parallel()
		name := cluster.Name("late")
		m := shop(name, 4)
		p := fenced(t, config(cluster.Brokers()), m, name)
		late, err := p.Encode(newMaker(m).many(40))
		if err != nil {
			t.Fatal(err)
		}
		late.Stamp()
		if err := late.Events(within(t)); err != nil {
			t.Errorf("a request that nothing is wrong with: %v", err)
		}
	})
}

// TestResend sends what is acknowledged once more, as after a lost answer: it
// stands once, and the session goes on.
func TestResend(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("again")
	m := shop(name, 3)
	p := fenced(t, config(cluster.Brokers()), m, name)
	mk := newMaker(m).recent()
	for range 3 {
		pub, err := p.Encode(mk.many(30))
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.Events(within(t)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := pub.Resend(within(t)); err != nil {
				t.Fatalf("again: %v", err)
			}
		}
		if err := pub.Latest(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(consume(t, cluster.Brokers(), name+".events")); n != 90 {
		t.Errorf("got %d events, want 90", n)
	}
}

// TestSequenceWrap goes over the end of the sequences.
func TestSequenceWrap(t *testing.T) {
	t.Parallel()
	cluster := testenv.Kafka(t)
	name := cluster.Name("wrap")
	m := shop(name, 1)
	p := fenced(t, config(cluster.Brokers()), m, name)
	p.Forge(t, math.MaxInt32-12)
	mk := newMaker(m).recent()
	for range 5 {
		var events []transform.Event
		for i := range 5 {
			events = append(events, mk.change(fmt.Sprint("key-", i), "PriceChanged")...)
		}
		pub, err := p.Encode(events)
		if err != nil {
			t.Fatal(err)
		}
		if err := pub.Events(within(t)); err != nil {
			t.Fatal(err)
		}
		if err := pub.Resend(within(t)); err != nil {
			t.Fatalf("again: %v", err)
		}
		if err := pub.Latest(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(consume(t, cluster.Brokers(), name+".events")); n != 25 {
		t.Errorf("got %d events, want 25", n)
	}
}
