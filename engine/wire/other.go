//go:build !linux

package wire

import (
	"net/netip"
	"runtime"
	"time"
)

// Elsewhere than on Linux every Net is plain.

const fastSystem = false

type (
	inboxSys struct{}
	destSys  struct{}
	fanSys   struct{}
)

func probe() (gso, gro bool) { return false, false }

func listenFast(netip.AddrPort, *Net) (Conn, error) { panic("wire: no fast Conn on this system") }

func newFastSender() sender { panic("wire: no fast sender on this system") }

func (in *Inbox) init(int) error { return nil }

// Close gives the memory back.
func (in *Inbox) Close() error { return nil }

func (d *Dest) init() {}

func (s *fanSys) add(*Dest)  {}
func (s *fanSys) remove(int) {}

// NewPoller opens a Poller.
func (n *Net) NewPoller() (Poller, error) { return newPlainPoller(), nil }

// Sleep blocks the calling goroutine.
func Sleep(d time.Duration) { time.Sleep(d) }

// Thread is an operating system thread of this process.
type Thread struct{}

// LockThread ties the calling goroutine to its thread for good.
func LockThread(string) (t Thread) {
	runtime.LockOSThread()
	return t
}

// CPU is not known here.
func (Thread) CPU() time.Duration { return 0 }

// RaiseSession has nothing to do.
func RaiseSession() error { return nil }

// RaiseFileLimit has nothing to do: the Go runtime raises the limit at start.
func RaiseFileLimit(want uint64) (uint64, error) { return want, nil }
