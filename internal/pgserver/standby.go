package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"backstory/internal/child"
)

// Standby starts a hot standby of the running server s, from a copy of it that is
// taken while it runs (Postgres 15 and later). It receives WAL through the
// physical slot, which is made on s if it is not there. From 17 on it also copies
// s's logical slots with the failover property, if the settings say
// sync_replication_slots; those need the connection that is set here. Version and
// Dir of o have no meaning: the version is s's, the directory is removed by Close.
func (s *Server) Standby(ctx context.Context, slot string, o Options) (_ *Server, err error) {
	scratch, err := child.NewScratch("pg")
	if err != nil {
		return nil, fmt.Errorf("start a standby: %w", err)
	}
	t := &Server{inst: s.inst, dir: scratch.Dir, user: s.user, scratch: scratch}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start a standby: %w", err), t.Close())
		}
	}()
	if err := t.user.Own(t.dir); err != nil {
		return nil, err
	}
	if err := s.backUp(ctx, slot, t.data()); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(t.data(), "standby.signal"), nil, 0o600), t.user.Own(t.data())); err != nil {
		return nil, err
	}
	settings := map[string]string{
		"primary_conninfo":  fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres application_name=%s", s.port, slot),
		"primary_slot_name": slot, "hot_standby_feedback": "on",
	}
	maps.Copy(settings, o.Settings)
	o.Settings = settings
	return t, t.startOn(ctx, o)
}

// Promote makes a standby a primary, on a new timeline, and returns when it takes
// writes. What it has received it replays before, also where replay was paused.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, fmt.Sprintf("SELECT pg_promote(true, %.0f)", startTimeout.Seconds())).ReadAll()
	if err == nil && string(results[0].Rows[0][0]) != "t" {
		err = fmt.Errorf("it is still a standby after %s", startTimeout)
	}
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	return nil
}

// backUp copies the running server into data. Its WAL since then waits in the slot.
func (s *Server) backUp(ctx context.Context, slot, data string) error {
	conn, err := pgconn.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range []string{
		"SELECT pg_create_physical_replication_slot('" + slot + "', true) WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '" + slot + "')",
		"SELECT pg_backup_start('standby', true)",
	} {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	if err := copyRunning(s.data(), data); err != nil {
		return fmt.Errorf("copy the running server: %w", err)
	}
	results, err := conn.Exec(ctx, "SELECT labelfile FROM pg_backup_stop(false)").ReadAll()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(data, "backup_label"), results[0].Rows[0][0], 0o600)
}

// notCopied are the parts of a running server that a copy must not have: its lock,
// its slots, and its WAL, which the standby receives.
var notCopied = []string{"postmaster.pid", "postmaster.opts", "pg_replslot/", "pg_wal/", "pg_stat_tmp/", "pg_notify/"}

// copyRunning copies the directory of a server while it writes there: a file may
// grow, shrink or go.
func copyRunning(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		for _, left := range notCopied {
			if name == left || strings.HasPrefix(name, left) {
				return nil
			}
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, name), 0o700)
		}
		return copyFile(path, filepath.Join(to, name))
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
