package capture

import "context"

// Recheck is one round of the watch.
func (d *Database) Recheck(ctx context.Context) error {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return d.recheck(ctx, conn)
}
