package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of one request. A slow reader of /metrics is cut off, and nothing that
// a client sends keeps a connection or memory for long.
const (
	headerTimeout   = 5 * time.Second
	requestTimeout  = 30 * time.Second
	idleTimeout     = 2 * time.Minute
	shutdownTimeout = 3 * time.Second
	maxHeaderBytes  = 16 << 10
	maxBodyBytes    = 1 << 20
)

// Views are what the server shows. The functions are called by many requests at
// once.
type Views struct {
	// Status returns what /status prints as JSON.
	Status func() any
	// Ready returns nil while changes flow, else what keeps them.
	Ready func() error
	// Metrics is what /metrics prints.
	Metrics prometheus.Gatherer
}

// Server serves HTTP from Open to the end of Run.
type Server struct {
	listener net.Listener
	mux      *http.ServeMux
	http     *http.Server
	log      *slog.Logger
}

// Open listens. Requests wait until Run serves them.
func Open(cfg Config, views Views, log *slog.Logger) (*Server, error) {
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("http.listen: %w", err)
	}
	s := &Server{listener: listener, mux: http.NewServeMux(), log: log.With("stage", "web")}
	s.routes(views)
	s.http = &http.Server{
		Handler:           s.guard(listener.Addr(), s.mux),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Handle adds a handler, such as "POST /backfill", before Run.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// Addr is where the server listens, with the port that was chosen for port 0.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx is done and the requests that run then have ended, or
// three seconds after that.
func (s *Server) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	served := make(chan struct{})
	go func() { // ends when ctx is done, or when Serve has failed
		defer close(stopped)
		select {
		case <-ctx.Done():
		case <-served:
		}
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if s.http.Shutdown(bound) != nil {
			_ = s.http.Close() // a request outlasts the bound; the process is ending
		}
	}()
	s.log.Info("http server started", "addr", s.Addr())
	err := s.http.Serve(s.listener)
	close(served)
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http server: %w", err)
}

// Close ends a server that Run was never called for. It may follow Run.
func (s *Server) Close() error {
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close http server: %w", err)
	}
	return nil
}

func (s *Server) routes(views Views) {
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeText(w, http.StatusOK, "ok")
	})
	s.mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := views.Ready(); err != nil {
			writeText(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		writeText(w, http.StatusOK, "ready")
	})
	s.mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, views.Status())
	})
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(views.Metrics, promhttp.HandlerOpts{
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		EnableOpenMetrics: true,
	}))
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text) // the client has gone: nobody to tell
}

func writeJSON(w http.ResponseWriter, code int, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		writeText(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // the client has gone: nobody to tell
}
