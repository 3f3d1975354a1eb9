package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"backstory/internal/pgserver"
	"backstory/internal/testenv"
)

// ender ends a fault.
type ender func(context.Context) error

// kind is a way to break something.
type kind struct {
	name   string
	weight int
	uses   []string          // what no other open fault may touch
	breaks bool              // servers, links or the disk
	able   func(*world) bool // nil: always
	begin  func(context.Context, *world) (ender, error)
}

// openFault lasts for some more faults.
type openFault struct {
	kind kind
	end  ender
	left int
}

// kinds are all ways, or those that -only names.
func (w *world) kinds() ([]kind, error) {
	all := slices.Concat(w.bridgeKinds(), w.fleetKinds(), w.postgresKinds(), w.kafkaKinds())
	if w.only == "" {
		return all, nil
	}
	names := strings.Split(w.only, ",")
	chosen := slices.DeleteFunc(slices.Clone(all), func(k kind) bool { return !slices.Contains(names, k.name) })
	if len(chosen) < len(names) {
		var known []string
		for _, k := range all {
			known = append(known, k.name)
		}
		return nil, fmt.Errorf("-only %s: choose from %s", w.only, strings.Join(known, ","))
	}
	return chosen, nil
}

// running is an instance that is meant to run, any of them.
func (w *world) running() *instance {
	var on []*instance
	for _, i := range w.fleet {
		if i.on() {
			on = append(on, i)
		}
	}
	return on[w.rng.IntN(len(on))]
}

func (w *world) both() bool { return w.fleet[0].on() && w.fleet[1].on() }

// bridgeKinds break one instance, which is started again.
func (w *world) bridgeKinds() []kind {
	bridge := []string{"bridge"}
	once := func(f func(*instance, context.Context) error) func(context.Context, *world) (ender, error) {
		return func(ctx context.Context, w *world) (ender, error) { return nil, f(w.running(), ctx) }
	}
	return []kind{
		{name: "kill-bridge", weight: 12, uses: bridge, begin: once((*instance).kill)},
		{name: "stop-bridge", weight: 5, uses: bridge, begin: once((*instance).stop)},
		{name: "freeze-bridge", weight: 6, uses: bridge, begin: func(_ context.Context, w *world) (ender, error) {
			i := w.running()
			return func(context.Context) error { return i.signal(syscall.SIGCONT) }, i.signal(syscall.SIGSTOP)
		}},
		{name: "lose-state", weight: 4, uses: bridge, begin: once(func(i *instance, ctx context.Context) error {
			return i.down(ctx, func() error { return os.RemoveAll(i.state) })
		})},
		{name: "tear-state", weight: 8, uses: bridge, begin: once(func(i *instance, ctx context.Context) error {
			return i.down(ctx, func() error {
				n, err := tear(i.state, w.rng)
				w.note("%d bytes of the state of bridge %s torn", n, i.name)
				return err
			})
		})},
		{name: "fill-disk", weight: 3, uses: []string{"disk"}, breaks: true,
			able: func(w *world) bool { return w.disk.mounted },
			begin: func(_ context.Context, w *world) (ender, error) {
				return func(context.Context) error { return w.disk.empty() }, w.disk.fill()
			}},
	}
}

// down kills the process and does something before it is started again.
func (i *instance) down(ctx context.Context, do func() error) error {
	i.want(false)
	defer i.want(true)
	if err := i.kill(ctx); err != nil {
		return err
	}
	return do()
}

// fleetKinds start and end instances, and let one take over from the other.
func (w *world) fleetKinds() []kind {
	bridge := []string{"bridge"}
	alone := func(w *world) bool { return !w.both() }
	return []kind{
		{name: "second-instance", weight: 4, uses: bridge,
			able: alone,
			begin: func(_ context.Context, w *world) (ender, error) {
				w.fleet[0].start()
				w.fleet[1].start()
				return nil, nil
			}},
		{name: "one-instance-less", weight: 8, uses: bridge, able: (*world).both,
			begin: func(ctx context.Context, w *world) (ender, error) {
				i := w.running()
				i.want(false)
				return nil, i.kill(ctx)
			}},
		{name: "take-over-from-killed", weight: 4, uses: bridge, able: alone,
			begin: func(ctx context.Context, w *world) (ender, error) {
				from, to, err := w.pair(ctx)
				if err != nil {
					return nil, err
				}
				from.want(false)
				if err := from.kill(ctx); err != nil {
					return nil, err
				}
				to.start()
				return func(context.Context) error { from.start(); return nil }, w.streaming(ctx, to)
			}},
		{name: "take-over-from-frozen", weight: 4, uses: bridge, breaks: true, able: alone,
			begin: func(ctx context.Context, w *world) (ender, error) {
				from, to, err := w.pair(ctx)
				if err != nil {
					return nil, err
				}
				if err := from.signal(syscall.SIGSTOP); err != nil {
					return nil, err
				}
				to.start()
				return func(context.Context) error { return from.signal(syscall.SIGCONT) }, w.streaming(ctx, to)
			}},
		// What the first instance has sent is held back, it is killed, the second
		// one takes over past the proxy, and then the first one's requests arrive.
		{name: "late-requests", weight: 5, uses: append(bridge, "kafka-link"), breaks: true,
			able: func(w *world) bool { return alone(w) && w.fleet[0].on() },
			begin: func(ctx context.Context, w *world) (ender, error) {
				from, to, err := w.pair(ctx)
				if err != nil {
					return nil, err
				}
				w.eachProxy((*testenv.Link).Stall)
				if err := w.rest(ctx, time.Duration(w.rng.IntN(500))*time.Millisecond); err != nil {
					return nil, err
				}
				from.want(false)
				if err := from.kill(ctx); err != nil {
					return nil, err
				}
				to.start()
				return func(context.Context) error { from.start(); return w.healProxies() }, w.streaming(ctx, to)
			}},
	}
}

// pair is the one instance that runs, and the other, which is to take over from
// it: so all other faults end first.
func (w *world) pair(ctx context.Context) (from, to *instance, err error) {
	from, to = w.fleet[1], w.fleet[0]
	if w.fleet[0].on() {
		from, to = to, from
	}
	return from, to, w.mendAll(ctx)
}

// postgresKinds break the server, its walsender, and the way to it.
func (w *world) postgresKinds() []kind {
	server := []string{"postgres"}
	restart := func(ctx context.Context) error { return w.pg.Restart(ctx) }
	kinds := []kind{
		{name: "kill-postgres", weight: 4, uses: server, breaks: true, begin: func(ctx context.Context, w *world) (ender, error) {
			return restart, w.pg.Kill9(ctx)
		}},
		{name: "stop-postgres", weight: 2, uses: server, breaks: true, begin: func(ctx context.Context, w *world) (ender, error) {
			err := w.pg.Stop(ctx, pgserver.FastStop)
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				// A walsender whose client is frozen holds it up until wal_sender_timeout;
				// Stop has killed it by then.
				err = nil
			}
			return restart, err
		}},
		{name: "terminate-walsender", weight: 5, uses: server, breaks: true, begin: func(ctx context.Context, w *world) (ender, error) {
			_, err := w.query(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_replication`)
			return nil, err
		}},
		// The server takes the death of any of its processes for damage: it ends all
		// sessions and recovers.
		{name: "kill-walsender", weight: 2, uses: server, breaks: true, begin: func(ctx context.Context, w *world) (ender, error) {
			pids, err := w.query(ctx, `SELECT pid FROM pg_stat_replication`)
			return w.ready, errors.Join(err, signalAll(pids, syscall.SIGKILL))
		}},
		{name: "freeze-walsender", weight: 4, uses: server, breaks: true, begin: func(ctx context.Context, w *world) (ender, error) {
			pids, err := w.query(ctx, `SELECT pid FROM pg_stat_replication`)
			return func(context.Context) error { return signalAll(pids, syscall.SIGCONT) }, errors.Join(err, signalAll(pids, syscall.SIGSTOP))
		}},
	}
	for _, i := range w.fleet {
		kinds = append(kinds, linkKinds("postgres-link-"+i.name, func(f func(*testenv.Link)) { f(i.link) }, i.link.Mend)...)
	}
	return kinds
}

// linkKinds break connections.
func linkKinds(name string, each func(func(*testenv.Link)), heal func() error) []kind {
	mend := func(context.Context) error { return heal() }
	do := func(f func(*testenv.Link), end ender) func(context.Context, *world) (ender, error) {
		return func(context.Context, *world) (ender, error) { each(f); return end, nil }
	}
	slow := func(_ context.Context, w *world) (ender, error) {
		delay := time.Duration(1+w.rng.IntN(100)) * time.Millisecond
		each(func(l *testenv.Link) { l.Slow(delay) })
		return mend, nil
	}
	uses := []string{name}
	return []kind{
		{name: "reset-" + name, weight: 2, uses: uses, breaks: true, begin: do((*testenv.Link).Reset, nil)},
		{name: "cut-" + name, weight: 2, uses: uses, breaks: true, begin: do((*testenv.Link).Cut, mend)},
		{name: "stall-" + name, weight: 2, uses: uses, breaks: true, begin: do((*testenv.Link).Stall, mend)},
		{name: "slow-" + name, weight: 2, uses: uses, breaks: true, begin: slow},
	}
}

// kafkaKinds break a broker and the ways to all of them.
func (w *world) kafkaKinds() []kind {
	broker := []string{"kafka"}
	at := func(f func(context.Context, int) error, end func(context.Context, int) error) func(context.Context, *world) (ender, error) {
		return func(ctx context.Context, w *world) (ender, error) {
			n := w.rng.IntN(w.brokers)
			return func(ctx context.Context) error { return end(ctx, n) }, f(ctx, n)
		}
	}
	k := w.kafka
	return append([]kind{
		{name: "kill-kafka", weight: 4, uses: broker, breaks: true, begin: at(k.KillNode, k.RestartNode)},
		{name: "stop-kafka", weight: 1, uses: broker, breaks: true, begin: at(k.StopNode, k.RestartNode)},
		{name: "freeze-kafka", weight: 4, uses: broker, breaks: true, begin: at(
			func(_ context.Context, n int) error { return k.SignalNode(n, syscall.SIGSTOP) },
			func(_ context.Context, n int) error { return k.SignalNode(n, syscall.SIGCONT) })},
	}, linkKinds("kafka-link", w.eachProxy, w.healProxies)...)
}

func (w *world) eachProxy(f func(*testenv.Link)) {
	for n := range w.brokers {
		f(w.kafka.Proxy(n))
	}
}

func (w *world) healProxies() (err error) {
	w.eachProxy(func(l *testenv.Link) { err = errors.Join(err, l.Mend()) })
	return err
}

// signalAll sends sig to processes of the server; one that has ended is no error.
func signalAll(pids []int32, sig syscall.Signal) error {
	for _, pid := range pids {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(name)) != "postgres" {
			continue
		}
		if err := syscall.Kill(int(pid), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal %d: %w", pid, err)
		}
	}
	return nil
}

// query runs a statement at the server and returns its first column as numbers.
// A server that is down has nothing to say.
func (w *world) query(ctx context.Context, sql string) ([]int32, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
	if err != nil {
		w.note("%v", err)
		return nil, nil
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, strings.Replace(sql, "pg_terminate_backend(pid)", "pg_terminate_backend(pid)::int", 1))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int32])
}

// ready waits until the server takes connections again.
func (w *world) ready(ctx context.Context) error {
	return w.until(ctx, time.Minute, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}
