package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"backstory/internal/child"
)

// Bounds of waiting, when ctx sets none that is shorter.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
	pollReady    = 5 * time.Millisecond
)

// maxSocketDir is the longest directory that a Unix socket fits into, in bytes;
// the path of a socket is limited to 103 (darwin) and ends in "/.s.PGSQL.65535".
const maxSocketDir = 103 - len("/.s.PGSQL.65535")

// Options say which server to start. The zero value is good.
type Options struct {
	// Version is the major version, "10" to "18"; empty: that of the cluster in
	// Dir, else the newest that is installed, else a fetched one.
	Version string
	// Dir keeps the cluster: made if it is absent, started as it is otherwise,
	// and never removed. Empty: a scratch directory that Close removes.
	Dir string
	// Port on 127.0.0.1; 0: a free one.
	Port int
	// Settings are added to the defaults (wal_level logical, 32 slots and senders).
	Settings map[string]string
	// Fast gives up fsync: a crash of the machine may destroy the cluster, a
	// crash of the server does not.
	Fast bool
}

// Mode is a way to stop a server.
type Mode syscall.Signal

// The modes, as pg_ctl names them.
const (
	FastStop      = Mode(syscall.SIGINT)  // ends sessions, writes a checkpoint
	ImmediateStop = Mode(syscall.SIGQUIT) // the next start recovers from WAL
)

// Server is a Postgres that this process has started. Its methods may be called
// from several goroutines, one at a time takes effect.
type Server struct {
	inst    Installation
	dir     string
	port    int
	socket  string
	user    *child.User
	scratch *child.Scratch // nil for a cluster with a directory of its own

	mu   sync.Mutex
	proc *child.Process // nil while stopped
}

// Start starts a server and returns when it takes connections. With an error it
// leaves nothing behind but a named Dir.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	if o.Version == "" && o.Dir != "" {
		o.Version, err = clusterVersion(o.Dir)
		if err != nil {
			return nil, fmt.Errorf("start postgres: %w", err)
		}
	}
	inst, err := Find(ctx, o.Version)
	if err != nil {
		return nil, err
	}
	s := &Server{inst: inst, dir: o.Dir, user: child.Unprivileged("postgres", "nobody")}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	for try := 1; ; try++ {
		err := s.startOn(ctx, o)
		if err == nil {
			return s, nil
		}
		if o.Port != 0 || try == 3 || !strings.Contains(err.Error(), "could not bind") {
			return nil, fmt.Errorf("start postgres: %w", err)
		}
	}
}

// prepare makes the directory and, where there is none, the cluster in it.
func (s *Server) prepare(ctx context.Context) error {
	if s.dir == "" {
		scratch, err := child.NewScratch("pg")
		if err != nil {
			return err
		}
		s.scratch, s.dir = scratch, scratch.Dir
		if err := s.user.Own(s.dir); err != nil {
			return err
		}
		return copyCluster(ctx, s.inst, s.user, s.data())
	}
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return err
	}
	s.dir = dir
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := errors.Join(s.user.Own(dir), s.user.Reaches(dir)); err != nil {
		return err
	}
	version, err := clusterVersion(dir)
	if version != "" || err != nil {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil { // of an initdb that was interrupted
		return err
	}
	return makeCluster(ctx, s.inst, s.user, s.data())
}

func (s *Server) startOn(ctx context.Context, o Options) error {
	s.port = o.Port
	if s.port == 0 {
		ports, err := child.FreePorts(1)
		if err != nil {
			return err
		}
		s.port = ports[0]
	}
	if len(s.dir) <= maxSocketDir {
		s.socket = s.dir
	}
	if err := writeSettings(s.data(), s.settings(o)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start(ctx)
}

func (s *Server) settings(o Options) [][2]string {
	all := [][2]string{
		{"listen_addresses", "127.0.0.1"},
		{"port", strconv.Itoa(s.port)},
		{"unix_socket_directories", s.socket},
		{"wal_level", "logical"},
		{"max_replication_slots", "32"},
		{"max_wal_senders", "32"},
		{"timezone", "UTC"},
		{"log_timezone", "UTC"},
	}
	if o.Fast {
		all = append(all, [][2]string{{"fsync", "off"}, {"full_page_writes", "off"}}...)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Settings)) {
		all = append(all, [2]string{name, o.Settings[name]})
	}
	return all
}

// start must be called with mu held and the server stopped.
func (s *Server) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	log, err := os.OpenFile(s.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close() // the server has its own copy
	info, err := log.Stat()
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.inst.Bin, "postgres"), "-D", s.data())
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.data(), environment(), log, log
	proc, err := child.Start(cmd, s.user, syscall.SIGQUIT)
	if err != nil {
		return err
	}
	s.proc = proc
	if err := s.ready(ctx); err != nil {
		return errors.Join(fmt.Errorf("%w: %s", err, s.logSince(info.Size())), s.kill9(context.WithoutCancel(ctx)))
	}
	return nil
}

// ready waits until the server takes a connection.
func (s *Server) ready(ctx context.Context) error {
	tick := time.NewTicker(pollReady)
	defer tick.Stop()
	for {
		conn, err := pgconn.Connect(ctx, s.DSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-s.proc.Done():
			return fmt.Errorf("the server ended: %w", s.proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("the server takes no connections: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

func (s *Server) logSince(offset int64) string {
	text, err := os.ReadFile(s.Log())
	if err != nil || int64(len(text)) < offset {
		return "no log"
	}
	return lastLines(string(text[offset:]))
}

// Stop stops the server; a stopped one is no error. After 30 s, or when ctx is
// done, it kills.
func (s *Server) Stop(ctx context.Context, mode Mode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := s.proc.Stop(ctx, syscall.Signal(mode))
	s.proc = nil
	return err
}

// Kill9 ends the postmaster and all its children by SIGKILL, as a crash does.
// It returns when they are gone.
func (s *Server) Kill9(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return nil
	}
	return s.kill9(ctx)
}

func (s *Server) kill9(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := s.proc.Kill(ctx)
	s.proc = nil
	if err != nil {
		return err
	}
	// The next start would take a process that has got the same pid for ours.
	if err := os.Remove(filepath.Join(s.data(), "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the lock of a killed server: %w", err)
	}
	return nil
}

// Restart starts the stopped or killed server on its port again; a running one
// is stopped fast before.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx, FastStop); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.start(ctx); err != nil {
		return fmt.Errorf("restart postgres: %w", err)
	}
	return nil
}

// Close stops the server and removes its scratch directory. It may be called twice.
func (s *Server) Close() error {
	mode := FastStop
	if s.scratch != nil {
		mode = ImmediateStop
	}
	err := s.Stop(context.Background(), mode)
	if s.scratch != nil {
		err = errors.Join(err, s.scratch.Remove())
	}
	return err
}

// DSN is the URL of a database, for the superuser.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
}

// Addr is where the server listens.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Socket is the directory of the Unix socket; empty where the path is too long.
func (s *Server) Socket() string { return s.socket }

// Log is the path of the server's log.
func (s *Server) Log() string { return filepath.Join(s.dir, "server.log") }

// Installation is what runs.
func (s *Server) Installation() Installation { return s.inst }

// PID of the postmaster; 0 while the server is stopped.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.PID()
}

func (s *Server) data() string { return dataDir(s.dir) }

func dataDir(dir string) string { return filepath.Join(dir, "data") }
