package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"

	"backstory/capture"
	"backstory/transform"
)

// Inspect runs the checks that Open runs of brokers, rights and topics, and makes
// nothing. It returns the names of the topics that Open would make. Its error is
// that of Open, with every wrong topic joined. It waits for brokers until ctx is
// done. Where id is not known the sources of the records are not compared.
func Inspect(ctx context.Context, cfg Config, m *transform.Mapping, id capture.Identity, slot string, log *slog.Logger) (missing []string, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	p := &Producer{cfg: cfg, log: log, tables: make(map[*transform.Table]*tableTopics), transactionalID: cfg.transactionalID(m, slot)}
	if p.metrics, err = newMetrics(prometheus.NewRegistry()); err != nil {
		return nil, err
	}
	if err := p.lay(m, id); err != nil {
		return nil, err
	}
	if p.client, err = newClient(cfg, log, p.names...); err != nil {
		return nil, err
	}
	defer p.client.close()
	p.reader = newReader(p.client, log)
	layouts, missing, err := p.presentTopics(ctx)
	if err != nil || len(p.topics) == 0 {
		return missing, err
	}
	err = p.inspectTopics(ctx, layouts)
	if id.System != 0 {
		err = errors.Join(err, p.checkSources(ctx, layouts))
	}
	return missing, errors.Join(err, p.checkRights(ctx))
}

// presentTopics looks once for the topics and forgets those that are not there.
func (p *Producer) presentTopics(ctx context.Context) (layouts []layout, missing []string, err error) {
	err = p.insist(ctx, "find the topics", func(ctx context.Context) error {
		var err error
		if layouts, err = p.client.leaders(ctx, p.names...); err != nil {
			return err
		}
		for i, t := range p.topics {
			if err := layouts[i].err; err != nil && !errors.Is(err, kafka.UnknownTopicOrPartition) {
				return t.judge(err, "")
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	var topics []*topicLog
	var absent []*topicLog
	var there []layout
	p.names = p.names[:0]
	for i, t := range p.topics {
		l := layouts[i]
		if l.err != nil {
			absent, missing = append(absent, t), append(missing, t.name)
			continue
		}
		t.index, t.parts = len(topics), make([]partition, len(l.leaders))
		topics, there, p.names = append(topics, t), append(there, l), append(p.names, t.name)
	}
	if len(absent) > 0 && !p.cfg.CreateTopics {
		return nil, missing, p.create(ctx, absent) // refuses
	}
	p.topics = topics
	return there, missing, p.checkReplication(ctx, absent)
}

// inspectTopics checks the topics that are there.
func (p *Producer) inspectTopics(ctx context.Context, layouts []layout) error {
	var wrong []error
	for _, t := range p.topics {
		if t.table == nil {
			continue
		}
		if events := p.topicOf(t.table, transform.Events); len(events.parts) == 0 {
			events.parts = t.parts // not there: it will be made alike
		}
		wrong = append(wrong, p.checkPartitions(ctx, t))
	}
	return p.checkConfigs(ctx, layouts, wrong)
}
