package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// Record is a record of either topic as any consumer sees it.
type Record struct {
	Key       string
	Value     []byte // nil: tombstone
	Headers   map[string]string
	Partition int32
	Offset    int64
	Time      time.Time
	Data      struct {
		Old, New map[string]json.RawMessage
		Reason   json.RawMessage
	}
}

// Version is ce_aggregateversion; −1 if there is none.
func (r *Record) Version() int64 {
	v, err := strconv.ParseInt(r.Headers["ce_aggregateversion"], 10, 64)
	if err != nil {
		return -1
	}
	return v
}

func (r *Record) deletes() bool { return strings.HasSuffix(r.Headers["ce_type"], "Deleted.v1") }

// ReadTopic returns every record of a topic at isolation level read_uncommitted,
// each partition in order. A topic that does not exist is an error.
func ReadTopic(ctx context.Context, brokers []string, topic string) ([]Record, int32, error) {
	base := []kgo.Opt{kgo.SeedBrokers(brokers...), kgo.FetchIsolationLevel(kgo.ReadUncommitted())}
	client, err := kgo.NewClient(base...)
	if err != nil {
		return nil, 0, fmt.Errorf("connect to %v: %w", brokers, err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, 0, fmt.Errorf("ends of %s: %w", topic, err)
	}
	if err := ends.Error(); err != nil {
		return nil, 0, fmt.Errorf("ends of %s: %w", topic, err)
	}
	assign, left := map[string]map[int32]kgo.Offset{topic: {}}, map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		assign[topic][o.Partition] = kgo.NewOffset().AtStart()
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	partitions := int32(len(assign[topic]))
	// Control records are kept to see that a partition has been read to its end.
	reader, err := kgo.NewClient(append(base, kgo.ConsumePartitions(assign), kgo.KeepControlRecords(),
		kgo.FetchMaxWait(100*time.Millisecond))...)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", topic, err)
	}
	defer reader.Close()
	var records []Record
	for len(left) > 0 {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", topic, err)
		}
		if errs := fetches.Errors(); len(errs) > 0 {
			return nil, 0, fmt.Errorf("read %s, partition %d: %w", topic, errs[0].Partition, errs[0].Err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				records = append(records, record(r))
			}
		})
	}
	return records, partitions, nil
}

func record(r *kgo.Record) Record {
	out := Record{Key: string(r.Key), Value: r.Value, Headers: map[string]string{}, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp}
	for _, h := range r.Headers {
		out.Headers[h.Key] = string(h.Value)
	}
	return out
}

// ReadByReader is ReadTopic through kafka-go's Reader, which knows no isolation
// level and hands the invisible markers out: its users skip them.
func ReadByReader(ctx context.Context, brokers []string, topic string, partitions int32) ([]Record, error) {
	read := make([][]Record, partitions)
	g, ctx := errgroup.WithContext(ctx)
	for p := range read {
		g.Go(func() (err error) {
			if read[p], err = readPartition(ctx, brokers, topic, p); err != nil {
				err = fmt.Errorf("read %s, partition %d by kafka-go: %w", topic, p, err)
			}
			return err
		})
	}
	err := g.Wait()
	return slices.Concat(read...), err
}

func readPartition(ctx context.Context, brokers []string, topic string, partition int) (_ []Record, err error) {
	conn, err := kafka.DialLeader(ctx, "tcp", brokers[0], topic, partition)
	if err != nil {
		return nil, err
	}
	end, err := conn.ReadLastOffset()
	if err = errors.Join(err, conn.Close()); err != nil || end == 0 {
		return nil, err
	}
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: brokers, Topic: topic, Partition: partition,
		MaxWait: 100 * time.Millisecond, MaxBytes: 16 << 20})
	defer func() { err = errors.Join(err, reader.Close()) }()
	var records []Record
	for {
		m, err := reader.ReadMessage(ctx)
		if err != nil {
			return nil, err
		}
		if !marker(&m) {
			r := Record{Key: string(m.Key), Value: m.Value, Headers: map[string]string{}, Partition: int32(partition), Offset: m.Offset, Time: m.Time}
			for _, h := range m.Headers {
				r.Headers[h.Key] = string(h.Value)
			}
			records = append(records, r)
		}
		if m.Offset >= end-1 {
			return records, nil
		}
	}
}

// marker reports whether a message is the end of a transaction: a key of a
// version and the kind abort, and no headers, which every record of ours has.
func marker(m *kafka.Message) bool {
	return len(m.Headers) == 0 && string(m.Key) == "\x00\x00\x00\x00"
}
