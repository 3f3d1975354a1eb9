package bridge

import (
	"context"
	"sync"
	"time"
)

// SlotView is what the server says of the slot, as of At.
type SlotView struct {
	Name      string `json:"name"`
	Confirmed string `json:"confirmed_lsn,omitempty"`
	Restart   string `json:"restart_lsn,omitempty"`
	Current   string `json:"current_lsn,omitempty"` // end of the server's WAL
	// LagBytes is the WAL above what is confirmed: changes that may not be
	// published yet. RetainedBytes is what the server keeps for the slot, which a
	// long transaction makes larger than the lag. SafeBytes may still be written
	// before the slot is in danger; −1: no limit.
	LagBytes      int64     `json:"lag_bytes"`
	RetainedBytes int64     `json:"retained_bytes"`
	SafeBytes     int64     `json:"safe_bytes"`
	WALStatus     string    `json:"wal_status,omitempty"` // Postgres 13 and later
	At            time.Time `json:"at"`
	Error         string    `json:"error,omitempty"` // why the server did not tell
}

// How often the server is asked for the slot at most, and how long it may take.
const (
	slotViewAge     = 5 * time.Second
	slotViewTimeout = 2 * time.Second
)

// slotCache keeps the last view: many may ask for the status, and each question
// is a connection to the legacy database.
type slotCache struct {
	mu   sync.Mutex
	view SlotView
}

// Slot returns what the server says of the slot, at most five seconds old.
func (b *Bridge) Slot() SlotView {
	c := &b.slot
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.view.At) < slotViewAge {
		return c.view
	}
	ctx, cancel := context.WithTimeout(context.Background(), slotViewTimeout)
	defer cancel()
	s, err := b.db.SlotStatus(ctx)
	c.view = SlotView{Name: s.Name, At: time.Now().UTC()}
	switch {
	case err != nil:
		c.view.Error = err.Error()
	case !s.Exists:
		c.view.Error = "it does not exist"
		c.view.Current = s.Current.String()
	default:
		c.view.Confirmed, c.view.Restart, c.view.Current = s.Confirmed.String(), s.Restart.String(), s.Current.String()
		c.view.LagBytes, c.view.RetainedBytes, c.view.SafeBytes, c.view.WALStatus = s.Lag(), s.Retained, s.Safe, s.Status
	}
	return c.view
}
