package sink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Times of trying again.
const (
	firstDelay = 50 * time.Millisecond
	lastDelay  = 2 * time.Second
	// unknownPatience is how long a topic may be unknown: a broker that has just
	// started doesn't know its topics yet, and one that is gone stays so.
	unknownPatience = 30 * time.Second
)

var (
	errShortAnswer = errors.New("the broker's answer ends too early")
	errNoAnswer    = errors.New("the broker's answer does not name it")
)

// restoreTopic is the way out where a topic is not what it was.
const restoreTopic = "restore the topic; or, if its records are given up, make new topics, " +
	"move the state directory away and start again, which publishes every row anew"

// lasting is an error that asking again does not mend.
type lasting struct{ error }

func (l lasting) Unwrap() error { return l.error }

// kafkaError is the error of an answer's code, nil for none.
func kafkaError(code int16) error {
	if code == 0 {
		return nil
	}
	return kafka.Error(code)
}

// lasts reports whether err stays the same if the brokers are asked again.
func lasts(err error) bool {
	var refusal *Refusal
	var known lasting
	_, fatal := fatalCode(err)
	return fatal || errors.As(err, &refusal) || errors.As(err, &known) || isForeignServer(err)
}

// isForeignServer reports whether the server's certificate was not accepted.
func isForeignServer(err error) bool {
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &certificate)
}

// attempts is the waiting between attempts of one step. It says in the log, once,
// that the step is held up, and once that it goes on.
type attempts struct {
	reader  *reader
	step    string
	delay   time.Duration
	logged  bool
	unknown time.Time // since when the topic is unknown
	held    error     // why the newest attempt failed that did not fail for the end of ctx
}

func (r *reader) attempts(step string) *attempts { return &attempts{reader: r, step: step} }

// over notes that an attempt was successful.
func (a *attempts) over() {
	if a.logged {
		a.reader.log.Info("kafka answers again", "step", a.step)
	}
	a.delay, a.logged, a.unknown, a.held = 0, false, time.Time{}, nil
}

// wait waits for the next attempt after err, with the leaders looked up anew. It
// returns an error instead if err lasts or ctx is done.
func (a *attempts) wait(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return a.interrupted(ctx, err)
	}
	if lasts(err) {
		return a.final(err)
	}
	a.held = err
	if err := a.unknownTooLong(err); err != nil {
		return err
	}
	if !a.logged && a.delay >= 4*firstDelay {
		a.logged = true
		a.reader.log.Warn("kafka does not answer, trying again", "step", a.step, "err", err)
	}
	a.reader.client.refresh()
	a.delay = min(max(2*a.delay, firstDelay), lastDelay)
	timer := time.NewTimer(a.delay/2 + rand.N(a.delay/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return a.interrupted(ctx, err)
	}
}

// interrupted says why the step has not come to its end, and what held it up.
func (a *attempts) interrupted(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || errors.Is(err, cause) || errors.Is(err, context.Canceled) {
		err = a.held // the attempt that was cut off does not know
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", a.step, cause)
	}
	return fmt.Errorf("%s: %w (it was held up: %w)", a.step, cause, err)
}

// unknownTooLong refuses a topic that does not come back.
func (a *attempts) unknownTooLong(err error) error {
	if !isUnknownTopic(err) {
		a.unknown = time.Time{}
		return nil
	}
	if a.unknown.IsZero() {
		a.unknown = time.Now()
	}
	if time.Since(a.unknown) < a.reader.patience {
		return nil
	}
	return &Refusal{
		Thing:   a.step,
		Problem: fmt.Sprintf("the brokers have not known the topic for %v", a.reader.patience),
		Cure:    "see whether it was deleted, or its name is wrong; " + restoreTopic,
		Err:     err,
	}
}

func isUnknownTopic(err error) bool {
	return errors.Is(err, kafka.UnknownTopicOrPartition) ||
		errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition)
}

// final is what the caller gets of an error that lasts.
func (a *attempts) final(err error) error {
	if isForeignServer(err) {
		return &Refusal{Thing: a.step, Problem: "the server's certificate is not accepted", Err: err,
			Cure: "check tls.ca_file and tls.server_name, and that kafka.brokers names the right servers"}
	}
	code, fatal := fatalCode(err)
	var refusal *Refusal
	if !fatal || errors.As(err, &refusal) {
		return fmt.Errorf("%s: %w", a.step, err)
	}
	return &Refusal{Thing: a.step, Problem: "the broker refuses it", Cure: cureOf(code), Err: err}
}
