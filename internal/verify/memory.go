package verify

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"backstory/capture"
	"backstory/transform"
)

// Memory is the state of a running bridge. Its methods are called by several
// requests at once and must hold up no commit.
type Memory interface {
	// Committed returns the phase of the bridge, the position up to which the
	// committed state has everything, and what is added to the positions of the WAL
	// in those of events.
	Committed() (phase string, lsn, base capture.LSN, err error)
	// TableOf returns the number of an aggregate's table in the state.
	TableOf(aggregate string) (table uint16, ok bool, err error)
	// Former returns the sources that the table's topics had before.
	Former(table uint16) ([]transform.Former, error)
	// Entry returns the committed entry of an aggregate, a zero one if there is
	// none, and whether its row is on the list of those to be read again.
	Entry(table uint16, key []byte) (e transform.Entry, again bool, err error)
	// EachKey calls fn for the keys in one of the parts, in no order.
	EachKey(ctx context.Context, table uint16, part int, fn func(key []byte) error) error
}

// Shaped is a Memory that also knows the shape of a table: the columns as the newest
// row was mapped with them. nil: it does not know it.
type Shaped interface {
	Shape(table uint16) (*capture.Shape, error)
}

// Memories finds the memory that has an aggregate: a process has one for each of
// its slots. nil: none has it.
type Memories func(aggregate string) Memory

// table finds an aggregate; else it has answered.
func (find Memories) table(w http.ResponseWriter, aggregate string) (m Memory, table uint16, ok bool) {
	var err error
	if m = find(aggregate); m != nil {
		table, ok, err = m.TableOf(aggregate)
	}
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case !ok:
		http.Error(w, fmt.Sprintf("the state has no aggregate %q", aggregate), http.StatusNotFound)
	}
	return m, table, ok
}

// entryRequest asks for entries. Keys are bytes, so JSON has them in base64.
type entryRequest struct {
	Aggregate string   `json:"aggregate"`
	After     string   `json:"after"` // answer when the state has everything below, or after askWait
	Keys      [][]byte `json:"keys"`
	Images    bool     `json:"images"` // send the images, not only their digests
}

// entryAnswer has an entry for each key, none if the state is not as far as asked.
type entryAnswer struct {
	Phase     string      `json:"phase"`
	Committed string      `json:"committed"`
	Entries   []wireEntry `json:"entries,omitempty"`
	Base      uint64      `json:"base,omitempty"` // what is added to the positions of the WAL
	// Shape is that of the table, where it is known.
	Shape *capture.Shape `json:"shape,omitempty"`
}

// wireEntry is an entry of the state.
type wireEntry struct {
	Version  uint64 `json:"version"`
	Sequence []byte `json:"sequence,omitempty"` // as the ce_sequence header
	XID      uint32 `json:"xid,omitempty"`
	Digest   []byte `json:"digest,omitempty"` // of the image; none: the aggregate does not exist
	Image    []byte `json:"image,omitempty"`
	Noted    bool   `json:"noted,omitempty"` // position and xid are those of a noted change
	Again    bool   `json:"again,omitempty"`
}

// keysRequest asks for the keys of a part of the state.
type keysRequest struct {
	Aggregate string `json:"aggregate"`
	Part      int    `json:"part"`
}

// keysAnswer has them.
type keysAnswer struct {
	Keys [][]byte `json:"keys"`
}

// sourcesRequest asks for the former sources of an aggregate's table.
type sourcesRequest struct {
	Aggregate string `json:"aggregate"`
}

// sourcesAnswer has them.
type sourcesAnswer struct {
	Former []transform.Former `json:"former"`
}

// Bounds of a request, and how long one waits for the state.
const (
	maxKeys   = 4096
	askWait   = 5 * time.Second
	askPoll   = 2 * time.Millisecond
	digestLen = 16
	// maxAnswer bounds the images of an answer, in bytes; the first key's is
	// always sent.
	maxAnswer = 32 << 20
)

func digest(image []byte) []byte {
	sum := sha256.Sum256(image)
	return sum[:digestLen]
}

// EntryHandler answers what the state of a running bridge has of given keys, for
// POST /state. Rows are nobody's business but the operator's: only requests from
// the same machine are answered.
func EntryHandler(find Memories) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q entryRequest
		if !accept(w, r, &q) {
			return
		}
		after, err := parseLSN(q.After)
		if err != nil || len(q.Keys) > maxKeys {
			http.Error(w, fmt.Sprintf("after must be an LSN, and there may be %d keys", maxKeys), http.StatusBadRequest)
			return
		}
		m, table, ok := find.table(w, q.Aggregate)
		if !ok {
			return
		}
		answer, err := collect(r.Context(), m, table, after, &q)
		reply(w, answer, err)
	})
}

// collect waits for the position and reads the entries after that, as many as fit.
func collect(ctx context.Context, m Memory, table uint16, after capture.LSN, q *entryRequest) (*entryAnswer, error) {
	phase, lsn, base, err := m.Committed()
	for end := time.Now().Add(askWait); err == nil && lsn < after && time.Now().Before(end); {
		select {
		case <-time.After(askPoll):
			phase, lsn, base, err = m.Committed()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	answer := &entryAnswer{Phase: phase, Committed: lsn.String(), Base: uint64(base)}
	if lsn < after {
		return answer, nil
	}
	if shaped, ok := m.(Shaped); ok {
		if answer.Shape, err = shaped.Shape(table); err != nil {
			return nil, err
		}
	}
	size := 0
	for _, key := range q.Keys {
		e, again, err := m.Entry(table, key)
		if err != nil {
			return nil, err
		}
		if size += len(e.Image); q.Images && size > maxAnswer && len(answer.Entries) > 0 {
			break
		}
		answer.Entries = append(answer.Entries, wireOf(&e, again, q.Images))
	}
	return answer, nil
}

func wireOf(e *transform.Entry, again, images bool) wireEntry {
	w := wireEntry{Version: e.Version, XID: e.XID, Noted: e.Place.Index == 0, Again: again}
	if e.Version > 0 {
		w.Sequence = transform.AppendSequence(nil, e.Place)
	}
	if e.Exists() {
		w.Digest = digest(e.Image)
		if images {
			w.Image = e.Image
		}
	}
	return w
}

// KeyHandler answers which keys a part of the state has, for POST /state/keys.
func KeyHandler(find Memories) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q keysRequest
		if !accept(w, r, &q) {
			return
		}
		m, table, ok := find.table(w, q.Aggregate)
		if !ok {
			return
		}
		answer := &keysAnswer{}
		err := m.EachKey(r.Context(), table, q.Part, func(key []byte) error {
			answer.Keys = append(answer.Keys, append([]byte{}, key...))
			return nil
		})
		reply(w, answer, err)
	})
}

// SourceHandler answers which sources a table's topics had before, for POST
// /state/sources.
func SourceHandler(find Memories) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q sourcesRequest
		if !accept(w, r, &q) {
			return
		}
		m, table, ok := find.table(w, q.Aggregate)
		if !ok {
			return
		}
		former, err := m.Former(table)
		reply(w, &sourcesAnswer{former}, err)
	})
}

// accept decodes a request of this machine; else it has answered.
func accept(w http.ResponseWriter, r *http.Request, q any) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		http.Error(w, "the state is shown to this machine only: run verify where the bridge runs", http.StatusForbidden)
		return false
	}
	if err := json.NewDecoder(r.Body).Decode(q); err != nil {
		http.Error(w, "the request is no JSON of the expected form: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func reply(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(answer) // the client has gone: nobody to tell
}
