package web

import (
	"fmt"
	"net"
)

// Config says where the server listens.
type Config struct {
	// Listen is host:port. Empty turns the server off. Default 127.0.0.1:8642.
	Listen string `yaml:"listen"`
}

// DefaultConfig listens on loopback.
func DefaultConfig() Config {
	return Config{Listen: "127.0.0.1:8642"}
}

// Validate reports what is wrong, by key.
func (c Config) Validate() error {
	if c.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen: %q is not host:port, such as 127.0.0.1:8642", c.Listen)
	}
	return nil
}
