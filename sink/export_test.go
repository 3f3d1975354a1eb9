package sink

import "context"

// Revive makes a session writable that an error has ended, as that of an instance
// which does not know of it.
func (p *Producer) Revive() { p.over.Store(false) }

// DeadLetters sends the dead letters alone.
func (p *Publication) DeadLetters(ctx context.Context) error {
	return p.publish(ctx, "publish dead letters", &p.letters)
}
