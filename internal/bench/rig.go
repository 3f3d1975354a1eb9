package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pglogrepl"

	"backstory/internal/child"
)

// mapping makes one event of an update of the price, and so two records.
const mapping = `
tables:
  - table: public.products
    aggregate: Product
    topics: {events: %s, latest: %s, partitions: 6, replication: 1}
    events:
      - {type: PriceChanged, when: [price, updated_at]}
`

// rig is the files of one bridge: configuration, mapping, state, log.
type rig struct {
	l              *lab
	dir            string
	slot           string
	http           string
	publication    string
	events, latest string
	extra          string // lines of configuration
	binary         string
}

// newRig makes a bridge with topics, slot and state of its own.
func (l *lab) newRig(name string) (*rig, error) {
	ports, err := child.FreePorts(1)
	if err != nil {
		return nil, err
	}
	r := &rig{l: l, dir: filepath.Join(l.dir, name), slot: "slot_" + name, publication: publication, binary: l.binary,
		http: fmt.Sprintf("127.0.0.1:%d", ports[0]), events: name + ".events", latest: name + ".latest"}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	return r, r.mapBy(fmt.Appendf(nil, mapping, r.events, r.latest))
}

// mapBy writes the mapping.
func (r *rig) mapBy(mapping []byte) error {
	return os.WriteFile(filepath.Join(r.dir, "products.yaml"), mapping, 0o644)
}

func (r *rig) stateDir() string { return filepath.Join(r.dir, "state") }
func (r *rig) logFile() string  { return filepath.Join(r.dir, "log") }

func (r *rig) configure(t transport) error {
	dsn, err := r.l.dsn(t)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.dir, "backstory.yaml"), fmt.Appendf(nil, `
source: {dsn: %q, slot: %s, publication: %s}
kafka: {brokers: [%s]}
state: {dir: %q}
http: {listen: %q}
log: {format: json}
mapping: products.yaml
%s
`, dsn, r.slot, r.publication, strings.Join(r.l.kafka.Brokers(), ", "), r.stateDir(), r.http, r.extra), 0o644)
}

// remove gives the space of the topics, the slot and the files back.
func (r *rig) remove() error {
	return errors.Join(
		r.l.deleteTopics(r.events, r.latest),
		r.l.exec("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '"+r.slot+"'"),
		os.RemoveAll(r.dir))
}

// bridge is a running bridge.
type bridge struct {
	r       *rig
	proc    *child.Process
	started time.Time
}

// start runs the bridge by the given transport.
func (r *rig) start(t transport, env ...string) (*bridge, error) {
	if err := r.configure(t); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(r.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the bridge has its own copy
	cmd := exec.Command(r.binary, "run", "--config", filepath.Join(r.dir, "backstory.yaml"))
	cmd.Dir, cmd.Stderr, cmd.Env = r.dir, log, append(os.Environ(), env...)
	b := &bridge{r: r, started: time.Now()}
	if b.proc, err = child.Start(cmd, nil, syscall.SIGKILL); err != nil {
		return nil, err
	}
	r.l.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if err := b.proc.Kill(ctx); err != nil {
			r.l.tb.Errorf("end the bridge: %v", err)
		}
	})
	return b, nil
}

// Bounds of waiting.
const (
	stopLimit  = 40 * time.Second
	startLimit = 10 * time.Minute // with a rebuild of a large state
)

// stop ends the bridge by SIGTERM.
func (b *bridge) stop() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.r.l.ctx()), stopLimit)
	defer cancel()
	if err := b.proc.Stop(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	return b.ended()
}

// ended returns why the bridge has ended, with its last words; nil while it runs
// and if it was told to.
func (b *bridge) ended() error {
	select {
	case <-b.proc.Done():
	default:
		return nil
	}
	if err := b.proc.Err(); err != nil {
		text, _ := os.ReadFile(b.r.logFile()) // what there is of it
		return fmt.Errorf("the bridge ended: %w: %s", err, text[max(0, len(text)-2000):])
	}
	return nil
}

// status is the part of /status that is looked at.
type status struct {
	Phase     string    `json:"phase"`
	Since     time.Time `json:"since"`
	Confirmed string    `json:"confirmed_lsn"`
	Slots     []struct {
		Since time.Time `json:"since"`
	} `json:"slots"`
	Tables []struct {
		Backfill struct {
			Phase string `json:"phase"`
			Rows  int    `json:"rows"`
		} `json:"backfill"`
	} `json:"tables"`
}

func (b *bridge) status() (s status, err error) {
	if err := b.ended(); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(b.r.l.ctx(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.r.http+"/status", nil)
	if err != nil {
		return s, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return s, notYet{err}
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// notYet is an error that may pass while the bridge starts.
type notYet struct{ error }

// await polls until ok says yes.
func (b *bridge) await(limit, every time.Duration, ok func(status) bool) (status, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	deadline := time.Now().Add(limit)
	for {
		s, err := b.status()
		var passing notYet
		switch {
		case err == nil && ok(s):
			return s, nil
		case err != nil && !errors.As(err, &passing):
			return s, err
		case time.Now().After(deadline):
			return s, fmt.Errorf("the bridge is %q after %s", s.Phase, limit)
		}
		select {
		case <-tick.C:
		case <-b.r.l.ctx().Done():
			return s, context.Cause(b.r.l.ctx())
		}
	}
}

// streaming waits until the bridge streams and returns since when it does.
func (b *bridge) streaming() (time.Time, error) {
	s, err := b.await(startLimit, 5*time.Millisecond, func(s status) bool { return s.Phase == "streaming" })
	return s.Since, err
}

// imported waits until the rows that were there are in the topics.
func (b *bridge) imported(limit time.Duration) error {
	_, err := b.await(limit, 20*time.Millisecond, func(s status) bool {
		for _, t := range s.Tables {
			if t.Backfill.Phase != "done" {
				return false
			}
		}
		return len(s.Tables) > 0
	})
	return err
}

// confirmed waits until everything below end is confirmed to Postgres.
func (b *bridge) confirmed(end pglogrepl.LSN, limit time.Duration) error {
	_, err := b.await(limit, 20*time.Millisecond, func(s status) bool {
		at, err := pglogrepl.ParseLSN(s.Confirmed)
		return err == nil && at >= end
	})
	return err
}

// prime imports the table, so that the state knows every row, and stops.
func (r *rig) prime() error {
	began := time.Now()
	b, err := r.start(unixSocket)
	if err != nil {
		return err
	}
	if err := b.imported(startLimit); err != nil {
		return err
	}
	if err := b.stop(); err != nil {
		return err
	}
	r.l.logf("rows imported in %.1f s", time.Since(began).Seconds())
	return nil
}
