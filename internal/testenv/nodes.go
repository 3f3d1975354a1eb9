package testenv

import (
	"context"
	"os"
)

// What breaks a cluster from a goroutine that is not the test's.

// KillNode ends node i by SIGKILL.
func (k *Cluster) KillNode(ctx context.Context, i int) error { return k.nodes[i].kill(ctx) }

// StopNode stops node i in an orderly way.
func (k *Cluster) StopNode(ctx context.Context, i int) error { return k.nodes[i].stop(ctx) }

// SignalNode sends sig to node i.
func (k *Cluster) SignalNode(i int, sig os.Signal) error { return k.nodes[i].signal(sig) }

// RestartNode starts node i again, on its ports and with its data, and waits
// until all running nodes know it.
func (k *Cluster) RestartNode(ctx context.Context, i int) error {
	n := k.nodes[i]
	if err := n.stop(ctx); err != nil {
		return err
	}
	if err := n.start(k); err != nil {
		return err
	}
	return k.ready(ctx)
}
