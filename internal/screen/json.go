package screen

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"backstory/transform"
)

// Record is what programs get of one record.
type Record struct {
	Topic       string          `json:"topic"`
	Partition   int32           `json:"partition"`
	Offset      int64           `json:"offset"`
	ID          string          `json:"id"`
	Type        string          `json:"type"`
	Key         string          `json:"key"`
	Version     uint64          `json:"version"`
	Time        string          `json:"time"`
	Op          string          `json:"op"`
	Cause       string          `json:"cause,omitempty"`
	Related     string          `json:"related,omitempty"`
	Actor       string          `json:"actor,omitempty"`
	Correlation string          `json:"correlation_id,omitempty"`
	Causation   string          `json:"causation_id,omitempty"`
	XID         uint32          `json:"xid,omitempty"`
	Value       json.RawMessage `json:"value"` // null: a tombstone
}

// JSON returns one record as a line without its end.
func JSON(topic string, r *transform.Stored) (string, error) {
	out := Record{
		Topic: topic, Partition: r.Partition, Offset: r.Offset, ID: r.ID.String(), Type: r.Type,
		Key: string(r.Key), Version: r.Version, Time: time.UnixMicro(r.Time).UTC().Format("2006-01-02T15:04:05.000000Z"),
		Op: r.Op.String(), Cause: r.Cause.String(), Related: string(r.Related), XID: r.XID, Value: r.Data,
	}
	if r.Topic == transform.Latest {
		out.Value = r.State
	}
	if r.Context != nil {
		out.Actor, out.Correlation, out.Causation = r.Context.Actor, r.Context.CorrelationID, r.Context.CausationID
	}
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(out); err != nil {
		return "", fmt.Errorf("record %d of %s, partition %d: %w", r.Offset, topic, r.Partition, err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
