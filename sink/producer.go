package sink

import (
	"log/slog"

	"backstory/transform"
)

// Producer publishes events to the topics of a mapping, and reads them back.
// One goroutine may publish while another encodes; Encode is not for two at once.
type Producer struct {
	cfg    Config
	client *Client
	log    *slog.Logger
	tables map[*transform.Table]*tableTopics
	topics []*topicLog // all topics, the dead-letter topic last
	dead   *topicLog   // nil: none is configured
}

// tableTopics are the two topics of a table.
type tableTopics struct {
	table  *transform.Table
	events *topicLog
	latest *topicLog
}

// topicLog is what the producer knows of a topic.
type topicLog struct {
	name  string
	kind  transform.Topic
	table *transform.Table // nil: the dead-letter topic
	parts []partition
	limit int // max.message.bytes: of a batch, from its base offset on
}

// partition is the end of a partition as the session predicts it.
type partition struct {
	topic *topicLog
	index int32
}

// topicOf returns one topic of a mapped table.
func (p *Producer) topicOf(table *transform.Table, kind transform.Topic) *topicLog {
	t := p.tables[table]
	if kind == transform.Latest {
		return t.latest
	}
	return t.events
}
