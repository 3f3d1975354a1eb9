package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// client asks a running bridge through its HTTP server.
type client struct {
	addr string
	http *http.Client
}

// Bounds of one question.
const (
	statusTimeout  = 5 * time.Second
	requestTimeout = time.Minute // a backfill's request waits for a session that streams
	maxAnswer      = 8 << 20
)

// newClient makes a client for the bridge that has the given http.listen.
func newClient(listen string) (*client, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, usageError{fmt.Errorf("http.listen: %q is not host:port; without it a running bridge cannot be asked", listen)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // the bridge listens everywhere, here too
	}
	// A proxy does not know our loopback.
	return &client{addr: net.JoinHostPort(host, port), http: &http.Client{Transport: &http.Transport{Proxy: nil}}}, nil
}

// noBridge says that nobody answers.
type noBridge struct {
	addr string
	err  error
}

func (e *noBridge) Error() string {
	return fmt.Sprintf("no bridge answers at %s: it is not running, or http.listen is another (%v)", e.addr, e.err)
}
func (e *noBridge) Unwrap() error { return e.err }

// answerError is an answer other than success; its status says what kind of error.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string { return e.text }
func (e *answerError) Usage() bool   { return e.status == http.StatusBadRequest }
func (e *answerError) Refused() bool { return e.status == http.StatusConflict }

// do sends a request and returns the text of the answer.
func (c *client) do(ctx context.Context, method, path string, body any, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
		in = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+c.addr+path, in)
	if err != nil {
		return nil, usageError{fmt.Errorf("http.listen: %w", err)}
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, &noBridge{c.addr, err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of the bridge at %s: %w", c.addr, err)
	}
	if response.StatusCode/100 != 2 {
		return nil, &answerError{response.StatusCode, strings.TrimSpace(string(text))}
	}
	return text, nil
}

// status returns what the bridge says of itself, and its text.
func (c *client) status(ctx context.Context) (s processStatus, text []byte, err error) {
	text, err = c.do(ctx, http.MethodGet, "/status", nil, statusTimeout)
	if err != nil {
		return s, nil, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, nil, fmt.Errorf("status of the bridge at %s: %w", c.addr, err)
	}
	return s, text, nil
}
