package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	standbyPoll  = 500 * time.Millisecond // between two looks at a slot that another session has
	startTimeout = time.Minute            // of START_REPLICATION
)

// codeUndefinedFile is the SQLSTATE of WAL that was removed under the slot.
const codeUndefinedFile = "58P01"

// session is a connection on which the slot is streamed.
type session struct {
	wire          *wire
	senderTimeout time.Duration // wal_sender_timeout; 0: the server waits for ever
	major         int           // of the server's version
	charset       *charset      // of the texts that the server sends
}

// openSession takes the slot and has it streamed from start. While another
// session has the slot it waits, which ends with ctx.
func (d *Database) openSession(ctx context.Context, start LSN) (*session, error) {
	for waited := false; ; waited = true {
		conn, err := d.connect(ctx, true)
		if err != nil {
			return nil, err
		}
		s, err := d.takeSlot(ctx, conn, start, waited)
		if err == nil {
			return s, nil
		}
		closeConn(ctx, conn)
		if sqlState(err) != codeObjectInUse {
			return nil, err
		}
		if err := pause(ctx, standbyPoll); err != nil {
			return nil, fmt.Errorf("wait for slot %s: %w", d.cfg.Slot, err)
		}
	}
}

// takeSlot is openSession on one connection. It fails with 55006 if another
// session is faster.
func (d *Database) takeSlot(ctx context.Context, conn *pgconn.PgConn, start LSN, waited bool) (*session, error) {
	if err := d.checkCluster(ctx, conn, start); err != nil {
		return nil, err
	}
	if err := d.standBy(ctx, conn, waited); err != nil {
		return nil, err
	}
	if err := d.offerFailover(ctx, conn); err != nil {
		return nil, err
	}
	timeout, err := senderTimeout(ctx, conn)
	if err != nil {
		return nil, err
	}
	major := serverMajor(conn)
	charset, err := takeCharset(ctx, conn)
	if err != nil {
		return nil, err
	}
	publication, err := charset.encode(d.cfg.Publication)
	if err != nil {
		return nil, &Refusal{Thing: "publication " + d.cfg.Publication, Problem: "its name: " + err.Error(), Cure: "name another one in source.publication"}
	}
	if err := conn.SyncConn(ctx); err != nil {
		return nil, stepError(ctx, "synchronise the connection", err)
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	s := &session{wire: newWire(hijacked.Conn), senderTimeout: timeout, major: major, charset: charset}
	if err := s.start(ctx, startCommand(d.cfg.Slot, publication, start, major)); err != nil {
		_ = hijacked.Conn.Close() // the session ends in either case
		return nil, startError(ctx, d.cfg.Slot, err)
	}
	return s, nil
}

// checkCluster makes sure that the server is the one of Prepare, and refuses one
// whose WAL ends below the position from which it is to be streamed. A server of
// another identity may have taken over in between: the next session finds out.
func (d *Database) checkCluster(ctx context.Context, conn *pgconn.PgConn, start LSN) error {
	now, end, err := identify(ctx, conn)
	if err != nil {
		return err
	}
	d.mu.Lock()
	prepared := d.baseline
	d.mu.Unlock()
	if prepared != nil && now != prepared.identity {
		return &ConnError{Step: "open slot " + d.cfg.Slot, Err: fmt.Errorf("the connection leads to %s, and the session began with %s", now, prepared.identity)}
	}
	if start > end {
		return &Refusal{
			Thing:   fmt.Sprintf("server %d", now.System),
			Problem: fmt.Sprintf("its WAL ends at %s, below the position %s of the state: it is not the server that the state was made from, or went back to an earlier copy", end, start),
			Cure: "if its data directory was put back: `backstory backfill --reconcile`, which compares the tables with the state and " +
				"publishes the differences; else let source.dsn lead to the server that the state was made from",
		}
	}
	return nil
}

// standBy returns when no other session streams from the slot. It looks
// before it tries, because each try on a taken slot is an error in the server's log.
func (d *Database) standBy(ctx context.Context, conn *pgconn.PgConn, waited bool) error {
	sql := "SELECT 1 FROM pg_catalog.pg_replication_slots WHERE active AND slot_name = " + quoteLiteral(d.cfg.Slot)
	for ; ; waited = true {
		results, err := conn.Exec(ctx, sql).ReadAll()
		if err != nil {
			return stepError(ctx, "look at slot "+d.cfg.Slot, err)
		}
		if len(results) == 1 && len(results[0].Rows) == 0 {
			return nil
		}
		if !waited {
			d.log.Info("standing by: another session streams from the slot")
		}
		if err := pause(ctx, standbyPoll); err != nil {
			return fmt.Errorf("wait for slot %s: %w", d.cfg.Slot, err)
		}
	}
}

// pause waits for a time; the error is the context's.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// senderTimeout reads for how long the server waits for a status of ours.
func senderTimeout(ctx context.Context, conn *pgconn.PgConn) (time.Duration, error) {
	const sql = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'" // in ms
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return 0, stepError(ctx, "read wal_sender_timeout", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, errors.New("read wal_sender_timeout: the server has no such setting")
	}
	ms, err := strconv.ParseInt(string(results[0].Rows[0][0]), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read wal_sender_timeout: %w", err)
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// startCommand is START_REPLICATION with the options that the server knows;
// an unknown one is an error there.
func startCommand(slot, publication string, start LSN, major int) string {
	options := []string{
		"proto_version '1'",
		"publication_names " + quoteLiteral(quoteIdent(publication)),
	}
	if major >= 14 {
		options = append(options, "messages 'true'")
	}
	return fmt.Sprintf("START_REPLICATION SLOT %s LOGICAL %s (%s)", quoteIdent(slot), start, strings.Join(options, ", "))
}

// start sends the command and waits until the server streams.
func (s *session) start(ctx context.Context, command string) error {
	conn := s.wire.conn
	if err := conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	query, err := (&pgproto3.Query{String: command}).Encode(nil)
	if err != nil {
		return err
	}
	if _, err := conn.Write(query); err != nil {
		return err
	}
	for {
		kind, body, err := s.wire.receive()
		if err != nil {
			return err
		}
		s.wire.skip(body)
		switch kind {
		case wireCopyBoth:
			if !stop() {
				return context.Cause(ctx)
			}
			return conn.SetDeadline(time.Time{})
		case wireError:
			return s.charset.explain(serverError(body))
		case wireNotice, wireParameter:
		default:
			return fmt.Errorf("%w: %q in answer to START_REPLICATION", errWire, kind)
		}
	}
}

// startError says why the slot could not be taken.
func startError(ctx context.Context, slot string, err error) error {
	step := "start streaming slot " + slot
	switch code := sqlState(err); {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", step, context.Cause(ctx))
	case code == codeUndefinedObject:
		return &Refusal{Thing: "slot " + slot, Problem: "it does not exist", Cure: repairCure}
	case code == codeNotInState, code == codeUndefinedFile:
		return lostSlot(slot, serverText(err))
	case code == codeNoRight:
		return &Refusal{Thing: "slot " + slot, Problem: serverText(err), Cure: "give the role REPLICATION"}
	}
	return transportError(step, err)
}

// streamError says why a stream that had begun ended.
func streamError(slot, publication string, err error) error {
	switch sqlState(err) {
	case codeUndefinedObject:
		return &Refusal{
			Thing:   "publication " + publication,
			Problem: serverText(err),
			Cure:    anewCure(slot) + "; as it is, the slot cannot get past the changes of that time",
		}
	case codeNotInState, codeUndefinedFile:
		return lostSlot(slot, serverText(err))
	case codeUntranslatable, codeNotInRepertoire: // in an encoding that only the server converts
		return &Refusal{
			Thing:   "slot " + slot,
			Problem: serverText(err),
			Cure: "the server does not say which text it cannot convert; `pg_replication_slot_advance` past it, or a new slot, and then " +
				"`backstory backfill --reconcile`",
		}
	}
	return transportError("stream slot "+slot, err)
}

// lostSlot says that changes are out of reach for ever.
func lostSlot(slot, problem string) *Refusal {
	return &Refusal{Thing: "slot " + slot, Problem: problem, Cure: repairCure}
}

// serverText is the server's message with its detail.
func serverText(err error) string {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err.Error()
	}
	if pg.Detail == "" {
		return pg.Message
	}
	return pg.Message + ": " + pg.Detail
}

// transportError is a *ConnError for what a new session may mend.
func transportError(step string, err error) error {
	var network net.Error
	if code := sqlState(err); code == "" && !errors.As(err, &network) && errors.Is(err, errWire) || code != "" && !lost(err) {
		return fmt.Errorf("%s: %w", step, err)
	}
	return &ConnError{Step: step, Err: err}
}
