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

// FreePorts returns n different ports of the loopback address on which nobody
// listens. They are not reserved: who loses the race must ask again.
func FreePorts(n int) ([]int, error) {
	held := make([]net.Listener, 0, n)
	ports := make([]int, 0, n)
	var last error
	for range 100 * n {
		if len(ports) == n {
			break
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		held, ports = append(held, l), append(ports, port)
	}
	var errs []error
	for _, l := range held {
		errs = append(errs, l.Close())
	}
	if len(ports) < n {
		errs = append(errs, last)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%d free ports on 127.0.0.1: %w", n, err)
	}
	return ports, nil
}
