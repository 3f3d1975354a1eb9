package testenv_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"backstory/internal/testenv"
)

func TestProgram(t *testing.T) {
	t.Parallel()
	var said strings.Builder
	var order []string
	err := testenv.Program(t.Context(), &said, func(tb testenv.TB) {
		tb.Cleanup(func() { order = append(order, "first") })
		tb.Cleanup(func() { order = append(order, "second"); tb.Fatalf("a cleanup") })
		tb.Logf("%d", 1)
		tb.Errorf("an error")
		tb.Fatalf("the end: %w", context.Canceled)
		order = append(order, "not reached")
	})
	if err == nil {
		t.Fatal("no error")
	}
	got := append(order, said.String(), err.Error())
	want := []string{"second", "first", "1\n", "an error\nthe end: context canceled\na cleanup"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
