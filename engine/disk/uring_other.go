//go:build !linux

package disk

import "errors"

// ring is for Linux; elsewhere there is never one.
type ring struct{}

func openRing([]byte, int, int, chan<- struct{}) (*ring, error) { return nil, errors.ErrUnsupported }

func (*ring) String() string                { return "" }
func (*ring) register(int) int32            { return none }
func (*ring) unregister(int32)              {}
func (*ring) push(int32, *read, int, int32) {}
func (*ring) reap(func(completion))         {}
func (*ring) submit()                       {}
func (*ring) cancel()                       {}
func (*ring) close() error                  { return nil }
