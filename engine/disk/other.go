//go:build !linux

package disk

import (
	"errors"
	"time"
)

func setDirect(int) error         { return errors.ErrUnsupported }
func noReadAhead(int)             {}
func dropCache(int, int64, int64) {}
func populate([]byte) error       { return nil }

// ring is for Linux; elsewhere there is never one.
type ring struct{}

func openRing([]byte, int, int) (*ring, error) { return nil, errors.ErrUnsupported }

func (*ring) String() string                { return "" }
func (*ring) enter() error                  { return nil }
func (*ring) leave()                        {}
func (*ring) register(int) int32            { return none }
func (*ring) unregister(int32)              {}
func (*ring) push(int32, *read, int, int32) {}
func (*ring) submit()                       {}
func (*ring) reap(func(completion))         {}
func (*ring) wait(time.Duration)            {}
func (*ring) wake()                         {}
func (*ring) cancel(int32)                  {}
func (*ring) close() error                  { return nil }
