package sink

// Revive makes a session writable that an error has ended, as that of an instance
// which does not know of it.
func (p *Producer) Revive() { p.over.Store(false) }
