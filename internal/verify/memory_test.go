package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"backstory/capture"
	"backstory/internal/verify"
	"backstory/transform"
)

// bridgeMemory is the state of a bridge that comes on by one position at each look.
type bridgeMemory struct {
	lsn   atomic.Uint64
	end   uint64
	down  atomic.Int32 // so many calls fail
	large int          // bytes of an image
}

func (m *bridgeMemory) Committed() (string, capture.LSN, capture.LSN, error) {
	if m.down.Add(-1) >= 0 {
		return "", 0, 0, errors.New("the state store is closed")
	}
	return "streaming", capture.LSN(min(m.lsn.Add(1), m.end)), 1 << 40, nil
}

func (m *bridgeMemory) TableOf(aggregate string) (uint16, bool, error) {
	return 1, aggregate == "Product", nil
}

func (m *bridgeMemory) Entry(_ uint16, key []byte) (transform.Entry, bool, error) {
	e := transform.Entry{Version: 3, XID: 7, Place: transform.Place{Pos: capture.Position{LSN: 5, Kind: capture.KindChange, Index: 1}, Index: 2}}
	switch string(key) {
	case "none":
		return transform.Entry{}, false, nil
	case "gone":
		return e, true, nil
	}
	e.Image = fmt.Appendf(nil, `{"id":%q,"x":"%s"}`, key, strings.Repeat("x", m.large))
	return e, false, nil
}

func (m *bridgeMemory) Former(uint16) ([]transform.Former, error) {
	return []transform.Former{{Source: "/postgres/6/legacy/public.products", Events: []int64{7}, Latest: []int64{8, 9}}}, nil
}

func (m *bridgeMemory) EachKey(_ context.Context, _ uint16, part int, fn func([]byte) error) error {
	return errors.Join(fn([]byte{0xff, 'a'}), fn(fmt.Append(nil, part)))
}

func serve(t *testing.T, m *bridgeMemory) (*verify.BridgeState, http.Handler) {
	t.Helper()
	mux := http.NewServeMux()
	find := func(string) verify.Memory { return m }
	mux.Handle("POST /state", verify.EntryHandler(find))
	mux.Handle("POST /state/keys", verify.KeyHandler(find))
	mux.Handle("POST /state/sources", verify.SourceHandler(find))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s := verify.NewBridgeState(strings.TrimPrefix(server.URL, "http://"))
	s.Patience = 20 * time.Second
	return s, mux
}

func TestEntriesOverHTTP(t *testing.T) {
	t.Parallel()
	m := &bridgeMemory{end: 100}
	m.down.Store(2)
	s, _ := serve(t, m)
	got, err := s.Entries(t.Context(), "Product", 20, []string{"a", "gone", "none"}, true)
	if err != nil {
		t.Fatal(err)
	}
	if lsn := m.lsn.Load(); lsn < 20 {
		t.Errorf("answered at position %d, before 20", lsn)
	}
	place := transform.Place{Pos: capture.Position{LSN: 5, Kind: capture.KindChange, Index: 1}, Index: 2}
	want := []verify.StateEntry{
		{Version: 3, XID: 7, Place: place, Image: []byte(`{"id":"a","x":""}`), Digest: got[0].Digest, Base: 1 << 40},
		{Version: 3, XID: 7, Place: place, Again: true, Base: 1 << 40},
		{Noted: true, Base: 1 << 40},
	}
	if d := cmp.Diff(want, got); d != "" || len(got[0].Digest) != 16 {
		t.Error(d)
	}
	keys, err := s.Keys(t.Context(), "Product", 9)
	if d := cmp.Diff([][]byte{{0xff, 'a'}, []byte("9")}, keys); err != nil || d != "" {
		t.Errorf("%v %s", err, d)
	}
	former, err := s.Former(t.Context(), "Product")
	if known, _ := m.Former(1); err != nil || cmp.Diff(known, former) != "" {
		t.Errorf("former sources: got %v, %v, want %v", former, err, known)
	}
}

// Many keys and large images take several questions, and all are answered.
func TestEntriesInParts(t *testing.T) {
	t.Parallel()
	for _, images := range []bool{false, true} {
		keys := make([]string, 6)
		if !images {
			keys = make([]string, 9000)
		}
		for i := range keys {
			keys[i] = fmt.Sprintf("key%d%s", i, strings.Repeat("k", 100))
		}
		m := &bridgeMemory{end: 100}
		if images {
			m.large = 8 << 20
		}
		s, _ := serve(t, m)
		got, err := s.Entries(t.Context(), "Product", 1, keys, images)
		if err != nil || len(got) != len(keys) {
			t.Fatalf("%d entries of %d: %v", len(got), len(keys), err)
		}
		if images && !strings.Contains(string(got[5].Image), keys[5]) {
			t.Error("the images are of other keys")
		}
	}
}

func TestBridgeThatStandsStill(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, &bridgeMemory{end: 10})
	s.Patience = 0
	if _, err := s.Entries(t.Context(), "Product", 20, []string{"a"}, false); err == nil || !strings.Contains(err.Error(), "has committed 0/A only; 0/14 is needed") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Keys(t.Context(), "Order", 0); err == nil || !strings.Contains(err.Error(), `no aggregate "Order"`) {
		t.Errorf("got %v", err)
	}
}

// Rows are shown to nobody but this machine.
func TestStateIsForThisMachine(t *testing.T) {
	t.Parallel()
	_, handler := serve(t, &bridgeMemory{end: 1})
	for _, path := range []string{"/state", "/state/keys", "/state/sources"} {
		request := httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{"aggregate":"Product","after":"0/0","keys":["YQ=="],"images":true}`))
		request.RemoteAddr = "192.0.2.1:4711"
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != http.StatusForbidden {
			t.Errorf("%s: got %d %s", path, answer.Code, answer.Body)
		}
		request = httptest.NewRequest(http.MethodPost, path, strings.NewReader(`{`))
		request.RemoteAddr = "127.0.0.1:4711"
		answer = httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != http.StatusBadRequest {
			t.Errorf("%s: got %d %s", path, answer.Code, answer.Body)
		}
	}
}
