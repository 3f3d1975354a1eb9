package testenv

import (
	"github.com/twmb/franz-go/pkg/kfake"
)

// KFake starts an embedded imitation of Kafka, which ends with the test. It
// knows topics, idempotence, transactions and groups; it is no proof of what a
// real broker does.
func KFake(tb TB, opts ...kfake.Opt) *kfake.Cluster {
	tb.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		tb.Fatalf("kfake: %v", err)
	}
	tb.Cleanup(c.Close)
	return c
}
