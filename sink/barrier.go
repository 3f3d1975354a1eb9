package sink

import "context"

func (p *Producer) barriers(ctx context.Context, s session) error { return nil }
