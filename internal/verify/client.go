package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"backstory/capture"
	"backstory/transform"
)

// Bounds of the questions to the bridge.
const (
	requestKeyBytes = 512 << 10
	requestTimeout  = 25 * time.Second
	answerLimit     = 512 << 20
	// bridgePatience is how long the bridge may be away or stand still: it may be
	// restarted meanwhile.
	bridgePatience = 2 * time.Minute
	retryPause     = 250 * time.Millisecond
)

// BridgeState asks a running bridge for its state over HTTP.
type BridgeState struct {
	base   string // http://127.0.0.1:8642
	client *http.Client
	// Patience is how long the bridge may be away, or stand still, before a call
	// fails. Default two minutes.
	Patience time.Duration
}

// NewBridgeState asks at addr, host:port.
func NewBridgeState(addr string) *BridgeState {
	// No proxy knows this machine's loopback.
	return &BridgeState{base: "http://" + addr, client: &http.Client{Transport: &http.Transport{Proxy: nil}}, Patience: bridgePatience}
}

// Entries returns the committed entries of the keys, in their order, as of
// moments at which the state has everything below after. images asks for the
// images themselves.
func (s *BridgeState) Entries(ctx context.Context, aggregate string, after capture.LSN, keys []string, images bool) ([]StateEntry, error) {
	entries := make([]StateEntry, 0, len(keys))
	since := time.Now()
	for first := true; first || len(entries) < len(keys); first = false {
		q := &entryRequest{Aggregate: aggregate, After: after.String(), Images: images}
		for size := 0; len(entries)+len(q.Keys) < len(keys) && len(q.Keys) < maxKeys; {
			key := keys[len(entries)+len(q.Keys)]
			if size += len(key) + 8; size > requestKeyBytes && len(q.Keys) > 0 {
				break
			}
			q.Keys = append(q.Keys, []byte(key))
		}
		var answer entryAnswer
		if err := s.insist(ctx, "/state", q, &answer); err != nil {
			return nil, err
		}
		reached, err := parseLSN(answer.Committed)
		if err != nil {
			return nil, fmt.Errorf("state of the bridge: committed position: %w", err)
		}
		if reached < after {
			if time.Since(since) > s.Patience {
				return nil, fmt.Errorf("the bridge is %s and has committed %s only; %s is needed (waited for %s)",
					answer.Phase, reached, after, s.Patience)
			}
			continue
		}
		if len(answer.Entries) > len(q.Keys) || len(answer.Entries) == 0 && len(q.Keys) > 0 {
			return nil, fmt.Errorf("state of the bridge: %d entries for %d keys", len(answer.Entries), len(q.Keys))
		}
		for i := range answer.Entries {
			e, err := entryOf(&answer.Entries[i])
			if err != nil {
				return nil, fmt.Errorf("state of the bridge: key %q: %w", q.Keys[i], err)
			}
			e.Base, e.Shape = capture.LSN(answer.Base), answer.Shape
			entries = append(entries, e)
		}
		since = time.Now()
	}
	return entries, nil
}

// Keys returns the keys in one of the parts of the state.
func (s *BridgeState) Keys(ctx context.Context, aggregate string, part int) ([][]byte, error) {
	var answer keysAnswer
	if err := s.insist(ctx, "/state/keys", &keysRequest{Aggregate: aggregate, Part: part}, &answer); err != nil {
		return nil, err
	}
	return answer.Keys, nil
}

// Former returns the sources that the topics of an aggregate had before.
func (s *BridgeState) Former(ctx context.Context, aggregate string) ([]transform.Former, error) {
	var answer sourcesAnswer
	if err := s.insist(ctx, "/state/sources", &sourcesRequest{Aggregate: aggregate}, &answer); err != nil {
		return nil, err
	}
	return answer.Former, nil
}

// errAway marks answers that may be better a moment later.
type errAway struct{ error }

// insist asks until the bridge answers, which may be starting again.
func (s *BridgeState) insist(ctx context.Context, path string, q, answer any) error {
	begun := time.Now()
	for {
		err := s.ask(ctx, path, q, answer)
		var away errAway
		if err == nil || !errors.As(err, &away) || ctx.Err() != nil || time.Since(begun) > s.Patience {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *BridgeState) ask(ctx context.Context, path string, q, answer any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("ask the bridge: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the bridge: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return errAway{fmt.Errorf("ask the bridge at %s: %w", s.base, err)}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		return errAway{fmt.Errorf("read the answer of the bridge at %s: %w", s.base, err)}
	}
	if response.StatusCode != http.StatusOK {
		err := fmt.Errorf("the bridge at %s answers %s: %s", s.base, response.Status, strings.TrimSpace(string(text)))
		if response.StatusCode >= http.StatusInternalServerError {
			return errAway{err}
		}
		return err
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("read the answer of the bridge at %s: %w", s.base, err)
	}
	return nil
}

// StateEntry is what the state has of one key.
type StateEntry struct {
	Version uint64 // 0: unknown
	Place   transform.Place
	XID     uint32
	Digest  []byte      // of the image; nil: the aggregate does not exist
	Image   []byte      // only where it was asked for
	Noted   bool        // Place and XID are those of a noted change, not of the version
	Again   bool        // the bridge is going to read the row
	Base    capture.LSN // what the bridge adds to the positions of the WAL
	// Shape is that of the table as the bridge knows it; nil: it does not say.
	Shape *capture.Shape
}

func entryOf(w *wireEntry) (StateEntry, error) {
	e := StateEntry{Version: w.Version, XID: w.XID, Digest: w.Digest, Image: w.Image, Noted: w.Noted, Again: w.Again}
	if w.Digest != nil && len(w.Digest) != digestLen {
		return e, fmt.Errorf("a digest of %d bytes", len(w.Digest))
	}
	if w.Version == 0 {
		return e, nil
	}
	var err error
	e.Place, err = transform.ParseSequence(w.Sequence)
	return e, err
}

func parseLSN(text string) (capture.LSN, error) { return pglogrepl.ParseLSN(text) }
