package main

import (
	"errors"
	"os"
	"time"
)

// usage is the CPU time that everybody has had so far, in seconds.
type usage struct {
	at                                     time.Time
	bridge, postgres, kafka, self, machine float64
	compilers                              float64 // part of kafka
}

// usage reads it; bridge is the pid of the program that is measured, 0 if it has
// ended or not begun.
func (l *lab) usage(bridge int) (usage, error) {
	u := usage{at: time.Now()}
	var errs [6]error
	if bridge != 0 {
		u.bridge, errs[0] = cpuOf(bridge)
	}
	u.postgres, errs[1] = cpuOfTree(l.pg.Server(l.tb).PID())
	u.kafka, errs[2] = cpuOf(l.kafka.PID(0))
	u.self, errs[3] = cpuOf(os.Getpid())
	u.machine, errs[4] = busy()
	u.compilers, errs[5] = compilersOf(l.kafka.PID(0))
	return u, errors.Join(errs[:]...)
}

// since is what was used from u to v.
func (v usage) since(u usage) usage {
	return usage{at: v.at, bridge: v.bridge - u.bridge, postgres: v.postgres - u.postgres,
		kafka: v.kafka - u.kafka, self: v.self - u.self, machine: v.machine - u.machine, compilers: max(0, v.compilers-u.compilers)}
}

// foreign is how many cores others used on average, in the given time.
func (v usage) foreign(d time.Duration) float64 {
	return (v.machine - v.bridge - v.postgres - v.kafka - v.self) / d.Seconds()
}
