package child

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken below the range from which systems serve outgoing connections
// (from 32768 on Linux), so that a stopped server finds its own port free again.
const (
	firstPort = 12000
	lastPort  = 31999
)

// FreePort returns a port of the loopback address on which nobody listens. It
// is not reserved: who loses the race must ask again.
func FreePort() (int, error) {
	var last error
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		if err := l.Close(); err != nil {
			last = err
			continue
		}
		return port, nil
	}
	return 0, fmt.Errorf("free port on 127.0.0.1: %w", errors.Join(errors.New("100 were tried"), last))
}
