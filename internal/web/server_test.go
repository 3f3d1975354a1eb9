package web_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"backstory/internal/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server until the test ends and returns its address.
func serve(t *testing.T, views web.Views, more func(*web.Server)) string {
	t.Helper()
	if views.Metrics == nil {
		views.Metrics = prometheus.NewRegistry()
	}
	s, err := web.Open(web.Config{Listen: "127.0.0.1:0"}, views, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if more != nil {
		more(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return s.Addr()
}

func ask(t *testing.T, method, addr, path string, change func(*http.Request)) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestEndpoints(t *testing.T) {
	var notReady atomic.Pointer[string]
	reason := "folding product.latest"
	notReady.Store(&reason)
	reg := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "backstory_events_total", Help: "Events."})
	reg.MustRegister(counter)
	counter.Add(3)
	addr := serve(t, web.Views{
		Metrics: reg,
		Status:  func() any { return map[string]string{"phase": "folding"} },
		Ready: func() error {
			if p := notReady.Load(); p != nil {
				return errors.New(*p)
			}
			return nil
		},
	}, nil)

	if code, body, _ := ask(t, "GET", addr, "/healthz", nil); code != 200 || body != "ok\n" {
		t.Errorf("healthz: got %d %q", code, body)
	}
	if code, body, _ := ask(t, "GET", addr, "/readyz", nil); code != 503 || body != reason+"\n" {
		t.Errorf("readyz while folding: got %d %q, want 503 and the reason", code, body)
	}
	notReady.Store(nil)
	if code, _, _ := ask(t, "GET", addr, "/readyz", nil); code != 200 {
		t.Errorf("readyz: got %d, want 200", code)
	}
	if _, body, _ := ask(t, "GET", addr, "/metrics", nil); !strings.Contains(body, "backstory_events_total 3") {
		t.Errorf("metrics: got %q", body)
	}
	code, body, header := ask(t, "GET", addr, "/status", nil)
	var status map[string]string
	if err := json.Unmarshal([]byte(body), &status); err != nil || code != 200 || status["phase"] != "folding" {
		t.Errorf("status: got %d %q (%v)", code, body, err)
	}
	if got := header.Get("Content-Type"); got != "application/json" {
		t.Errorf("status: content type %q", got)
	}
	if code, _, _ := ask(t, "POST", addr, "/status", nil); code != http.StatusMethodNotAllowed {
		t.Errorf("post: got %d, want 405", code)
	}
}

func TestForeignPagesAreRefused(t *testing.T) {
	addr := serve(t, web.Views{}, func(s *web.Server) {
		s.Handle("POST /backfill", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	})
	tests := []struct {
		name   string
		change func(*http.Request)
		want   int
	}{
		{"a command-line tool", nil, http.StatusAccepted},
		{"another origin", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, http.StatusForbidden},
		{"an older browser", func(r *http.Request) { r.Header.Set("Origin", "https://example.com") }, http.StatusForbidden},
		{"a rebound name", func(r *http.Request) { r.Host = "example.com:8642" }, http.StatusMisdirectedRequest},
		{"localhost", func(r *http.Request) { r.Host = "localhost:8642" }, http.StatusAccepted},
		{"IPv6", func(r *http.Request) { r.Host = "[::1]:8642" }, http.StatusAccepted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _, _ := ask(t, "POST", addr, "/backfill", tt.change); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestRunEndsThoughARequestHangs(t *testing.T) {
	entered := make(chan struct{})
	release := make(chan struct{})
	s, err := web.Open(web.Config{Listen: "127.0.0.1:0"}, web.Views{Metrics: prometheus.NewRegistry()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.Handle("GET /hang", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(entered); <-release }))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if resp, err := http.Get("http://" + s.Addr() + "/hang"); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the server did not end")
	}
	close(release)
	<-asked
	http.DefaultClient.CloseIdleConnections()
}

func TestOpenNamesTheKey(t *testing.T) {
	taken := serve(t, web.Views{}, nil)
	_, err := web.Open(web.Config{Listen: taken}, web.Views{Metrics: prometheus.NewRegistry()}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.HasPrefix(err.Error(), "http.listen: ") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want the key and the cause", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]string{
		"": "", "127.0.0.1:8642": "", ":0": "", "[::1]:1": "",
		"8642": `listen: "8642" is not host:port, such as 127.0.0.1:8642`,
	} {
		got := ""
		if err := (web.Config{Listen: listen}).Validate(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", listen, got, want)
		}
	}
}
