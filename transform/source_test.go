package transform_test

import (
	"testing"

	"backstory/capture"
	"backstory/transform"
)

func TestSourceOf(t *testing.T) {
	t.Parallel()
	id := capture.Identity{System: 7, Timeline: 3, Database: "a b/c"}
	if got, want := transform.SourceOf(id, "público", "x.y"), "/postgres/7/a%20b%2Fc/p%C3%BAblico.x.y"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFormerWrote(t *testing.T) {
	t.Parallel()
	table := &transform.Table{Former: []transform.Former{
		{Source: "moved", Events: []int64{5, 0}, Latest: []int64{3, 1}}, {Source: "renamed"},
	}}
	tests := []struct {
		source    string
		topic     transform.Topic
		partition int32
		offset    int64
		want      bool
	}{
		{"moved", transform.Events, 0, 4, true},
		{"moved", transform.Events, 0, 5, false},
		{"moved", transform.Events, 1, 0, false},
		{"moved", transform.Latest, 0, 3, false},
		{"moved", transform.Latest, 1, 0, true},
		{"renamed", transform.Events, 0, 1 << 40, true},
	}
	for _, tt := range tests {
		if got := table.FormerOf(tt.source).Wrote(tt.topic, tt.partition, tt.offset); got != tt.want {
			t.Errorf("%s, %s partition %d offset %d: got %t, want %t", tt.source, tt.topic, tt.partition, tt.offset, got, tt.want)
		}
	}
	if table.FormerOf("other") != nil {
		t.Error("a source that the table never had is one of its former ones")
	}
}
