package testenv

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// properties are those of one node: the defaults, security, then the test's own.
func (k *Cluster) properties(n *node, o kafkaOptions) [][2]string {
	var voters []string
	for _, v := range k.nodes {
		voters = append(voters, fmt.Sprintf("%d@%s", v.id, v.controller))
	}
	replicas, inSync := min(o.brokers, 3), 1
	if replicas == 3 {
		inSync = 2
	}
	r, m := strconv.Itoa(replicas), strconv.Itoa(inSync)
	listeners := fmt.Sprintf("CLIENT://%s,INTERNAL://%s", n.client, n.internal)
	advertised := fmt.Sprintf("CLIENT://%s,INTERNAL://%s", n.advertised, n.internal)
	protocols := "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
	if k.security != nil {
		listeners += ",SECURED://" + n.secured
		advertised += ",SECURED://" + n.secured
		protocols += ",SECURED:" + k.security.protocol
	}
	all := [][2]string{
		{"process.roles", "broker,controller"},
		{"node.id", strconv.Itoa(n.id)},
		{"controller.quorum.voters", strings.Join(voters, ",")},
		{"controller.listener.names", "CONTROLLER"},
		{"listeners", listeners + ",CONTROLLER://" + n.controller},
		{"advertised.listeners", advertised},
		{"listener.security.protocol.map", protocols},
		{"inter.broker.listener.name", "INTERNAL"},
		{"log.dirs", "data"},
		{"auto.create.topics.enable", "false"},
		{"default.replication.factor", r},
		{"min.insync.replicas", m},
		{"offsets.topic.replication.factor", r},
		{"offsets.topic.num.partitions", "4"},
		{"transaction.state.log.replication.factor", r},
		{"transaction.state.log.min.isr", m},
		{"transaction.state.log.num.partitions", "4"},
		{"share.coordinator.state.topic.replication.factor", r},
		{"share.coordinator.state.topic.min.isr", m},
		{"group.initial.rebalance.delay.ms", "0"},
		{"controlled.shutdown.enable", strconv.FormatBool(o.brokers > 1)},
		// A killed broker is missed, and comes back, in seconds.
		{"broker.session.timeout.ms", "2000"},
		{"broker.heartbeat.interval.ms", "200"},
	}
	if k.security != nil {
		all = append(all, k.security.properties...)
	}
	return append(all, o.properties...)
}

// attempt bounds one question of ready to a broker.
const attempt = 2 * time.Second

// ready waits until every running node lists all running ones, and the
// cluster hands out transactional producer ids, which is the last thing that a
// new cluster learns.
func (k *Cluster) ready(ctx context.Context) error {
	transport := &kafka.Transport{DialTimeout: attempt, MetadataTTL: 100 * time.Millisecond}
	defer transport.CloseIdleConnections()
	tick := time.NewTicker(pollCondition)
	defer tick.Stop()
	for {
		err := k.check(ctx, transport)
		if err == nil {
			return nil
		}
		for _, n := range k.nodes {
			if n.running() {
				if end := n.ended(); end != nil {
					return fmt.Errorf("start kafka: %w", end)
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("start kafka: not ready: %w; node 1: %s", errors.Join(context.Cause(ctx), err), k.nodes[0].lastWords())
		}
	}
}

func (k *Cluster) check(ctx context.Context, transport *kafka.Transport) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	running := 0
	for _, n := range k.nodes {
		if n.running() {
			running++
		}
	}
	var client *kafka.Client
	for _, n := range k.nodes {
		if !n.running() {
			continue
		}
		client = &kafka.Client{Addr: kafka.TCP(n.internal), Transport: transport}
		meta, err := client.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return err
		}
		if len(meta.Brokers) != running {
			return fmt.Errorf("node %d knows %d brokers of %d", n.id, len(meta.Brokers), running)
		}
	}
	if client == nil {
		return errors.New("no node runs")
	}
	resp, err := client.InitProducerID(ctx, &kafka.InitProducerIDRequest{
		TransactionalID: "testenv", TransactionTimeoutMs: 60_000, ProducerID: -1, ProducerEpoch: -1,
	})
	if err != nil {
		return err
	}
	return resp.Error
}
