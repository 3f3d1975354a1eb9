package capture

import (
	"context"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// Recheck is one round of the watch.
func (d *Database) Recheck(ctx context.Context) error {
	conn, err := d.connect(ctx, false)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return d.recheck(ctx, conn)
}

// StreamingSettings are the settings of a session that streams, as the server has
// them.
func (d *Database) StreamingSettings(ctx context.Context) (map[string]string, error) {
	conn, err := d.connect(ctx, true)
	if err != nil {
		return nil, err
	}
	defer closeConn(ctx, conn)
	results, err := conn.Exec(ctx, "SELECT name, setting FROM pg_catalog.pg_settings").ReadAll()
	if err != nil {
		return nil, err
	}
	settings := make(map[string]string, len(results[0].Rows))
	for _, row := range results[0].Rows {
		settings[string(row[0])] = string(row[1])
	}
	return settings, nil
}

// Pinned are the settings that both kinds of session have to have.
func Pinned() map[string]string { return pinned }

// RecheckAt compares the server of an open session with an identity.
func (d *Database) RecheckAt(ctx context.Context, conn *pgconn.PgConn, was Identity) error {
	return d.recheckCluster(ctx, conn, &baseline{identity: was})
}

// DemandsPrimary reports whether a standby will not do for a DSN.
func DemandsPrimary(t *testing.T, dsn string) bool {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DSN = dsn
	d, err := NewDatabase(cfg, nil, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	to, err := d.destination(forCatalog)
	if err != nil {
		t.Fatal(err)
	}
	return to.primary
}
