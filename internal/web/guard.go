package web

import (
	"net"
	"net/http"
	"net/netip"
)

// guard refuses what a web page could make an operator's browser send: requests
// that change something and come from another origin, and, on loopback, requests
// under a foreign host name, which is how a page reaches a local server after it
// has made its own name point to 127.0.0.1.
func (s *Server) guard(addr net.Addr, next http.Handler) http.Handler {
	loopback := isLoopback(addr.String())
	sameOrigin := http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if loopback && !isLocalName(r.Host) {
			writeText(w, http.StatusMisdirectedRequest, "this server listens on loopback; ask for it as localhost or by its address")
			return
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
		sameOrigin.ServeHTTP(w, r)
	})
}

func isLoopback(hostPort string) bool {
	addr, err := netip.ParseAddrPort(hostPort)
	return err == nil && addr.Addr().Unmap().IsLoopback()
}

// isLocalName reports whether a Host header names this machine by an address or
// as localhost.
func isLocalName(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = hostPort // no port
	}
	if host == "localhost" || len(host) > 1 && host[0] == '[' {
		return true
	}
	_, err = netip.ParseAddr(host)
	return err == nil
}
