package sink

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// group is the cursors whose partitions one broker leads.
type group struct {
	leader  int32 // node id
	cursors []*cursor
}

// byLeader sorts the cursors by who leads their partitions at the moment. A
// partition without a leader is an error: it comes back, or the operator is told.
func (r *reader) byLeader(ctx context.Context, cursors []*cursor) ([]group, error) {
	layouts, err := r.client.leaders(ctx, topicsOf(cursors)...)
	if err != nil {
		return nil, err
	}
	var groups []group
	for _, c := range cursors {
		leader, err := leaderOf(layouts, c)
		if err != nil {
			return nil, c.failed(err)
		}
		groups = addTo(groups, leader, c)
	}
	return groups, nil
}

func topicsOf(cursors []*cursor) []string {
	var topics []string
	known := make(map[string]bool)
	for _, c := range cursors {
		if !known[c.topic] {
			known[c.topic] = true
			topics = append(topics, c.topic)
		}
	}
	return topics
}

func leaderOf(layouts []layout, c *cursor) (int32, error) {
	for i := range layouts {
		l := &layouts[i]
		switch {
		case l.topic != c.topic:
		case l.err != nil:
			return -1, l.err
		case int(c.partition) >= len(l.leaders):
			return -1, kafka.UnknownTopicOrPartition
		case l.leaders[c.partition] < 0:
			return -1, kafka.LeaderNotAvailable
		default:
			return l.leaders[c.partition], nil
		}
	}
	return -1, kafka.UnknownTopicOrPartition
}

func addTo(groups []group, leader int32, c *cursor) []group {
	for i := range groups {
		if groups[i].leader == leader {
			groups[i].cursors = append(groups[i].cursors, c)
			return groups
		}
	}
	return append(groups, group{leader: leader, cursors: []*cursor{c}})
}

// brokerByID finds the broker of a request that names its leader.
func brokerByID(cluster protocol.Cluster, id int32) (protocol.Broker, error) {
	b, ok := cluster.Brokers[id]
	if !ok {
		return protocol.Broker{ID: -1}, fmt.Errorf("broker %d: %w", id, kafka.BrokerNotAvailable)
	}
	return b, nil
}
