package demo

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Broker is a Kafka broker inside this process, on loopback, with its log on
// disk. It serves to try things out: it has one node and no security.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
}

// StartBroker starts a broker on a free port, with the topics that dir has from
// a run before.
func StartBroker(dir string) (*Broker, error) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(dir))
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return &Broker{cluster: cluster, addr: cluster.ListenAddrs()[0]}, nil
}

// Addr is the host:port to give to clients.
func (b *Broker) Addr() string { return b.addr }

// Close writes the log out and ends the broker.
func (b *Broker) Close() { b.cluster.Close() }
