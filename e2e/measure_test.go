//go:build e2e && linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rtspshim/internal/testbed"
)

// TestSetUpLatency measures what the shim adds until a stream plays: connection,
// OPTIONS, DESCRIBE, SETUP over UDP and PLAY.
func TestSetUpLatency(t *testing.T) {
	lib := testbed.Upstream{Name: "gortsplib", Addr: testbed.StartChild(t, "gortsplib")}
	shim := testbed.StartShim(t, lib)
	rtp, rtcp := testbed.UDPPair(t, "127.0.0.1")
	defer rtp.Close()  //nolint:errcheck // only holds the port
	defer rtcp.Close() //nolint:errcheck // only holds the port
	port := rtp.LocalAddr().(*net.UDPAddr).Port
	requests := []string{"OPTIONS", "DESCRIBE", "SETUP", "PLAY"}
	once := func(addr string) (took [5]time.Duration) { // to each answer, from the one before; in all
		url := "rtsp://" + addr + "/live"
		began := time.Now()
		c := dialRaw(t, addr)
		defer c.Close() //nolint:errcheck // its end is not measured
		session, last := "", began
		for i, method := range requests {
			uri, more := url, ""
			switch method {
			case "SETUP":
				uri, more = url+"/trackID=0", fmt.Sprintf("Transport: RTP/AVP;unicast;client_port=%d-%d\r\n", port, port+1)
			case "PLAY":
				uri, more = url+"/", "Session: "+session+"\r\n"
			}
			c.send(fmt.Sprintf("%s %s RTSP/1.0\r\nCSeq: %d\r\n%s\r\n", method, uri, i, more))
			answer := c.next(5 * time.Second)
			if !strings.HasPrefix(answer, "RTSP/1.0 200") {
				t.Fatalf("%s: %q", method, answer)
			}
			session = sessionOf(answer)
			now := time.Now()
			took[i], last = now.Sub(last), now
		}
		took[4] = last.Sub(began)
		c.send(fmt.Sprintf("TEARDOWN %s/ RTSP/1.0\r\nCSeq: 5\r\nSession: %s\r\n\r\n", url, session))
		c.next(5 * time.Second)
		return took
	}
	added := time.Hour
	for try := 0; try < 3 && added > time.Millisecond; try++ { // others may have had the processors
		var direct, shimmed [5][]time.Duration
		for i := range 320 {
			d, s := once(lib.Addr), once(shim.Addr)
			for step := range d {
				if i >= 20 { // warm
					direct[step], shimmed[step] = append(direct[step], d[step]), append(shimmed[step], s[step])
				}
			}
		}
		for step, method := range append(requests, "connection to PLAY") {
			d, s := direct[step], shimmed[step]
			added = at(s, 50) - at(d, 50)
			t.Logf("%-18s directly p50 %v p90 %v; through the shim p50 %v p90 %v; added at the median %v",
				method, at(d, 50), at(d, 90), at(s, 50), at(s, 90), added)
		}
	}
	if added > time.Millisecond {
		t.Errorf("the shim adds %v at the median", added)
	}
}

func at(d []time.Duration, percent int) time.Duration {
	slices.Sort(d)
	return d[len(d)*percent/100].Round(time.Microsecond)
}

// TestChild is a server with a live stream.
func TestChild(t *testing.T) {
	testbed.BeChild(t, func(t *testing.T, _ string) string {
		lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{})
		t.Cleanup(publishPackets(t, lib, "/live", 100))
		return lib.Addr
	})
}

// viewers counts the packets of many UDP sessions, cheaply: of each it takes the
// header alone.
type viewers struct {
	fds      []int
	ports    map[int]bool
	last     []int32 // sequence number, -1 before the first
	received uint64
	lost     uint64
}

func (v *viewers) open(tb testing.TB) int {
	tb.Helper()
	a, b := testbed.UDPPair(tb, "127.0.0.1")
	port := a.LocalAddr().(*net.UDPAddr).Port
	file, err := a.File()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = file.Close(), b.Close() })
	// Nothing may be lost here because the test itself had no processor.
	if err := syscall.SetsockoptInt(int(file.Fd()), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, 2<<20); err != nil {
		_ = a.SetReadBuffer(2 << 20) // as much as the kernel grants
	}
	_ = a.Close() // the file goes on; b, the RTCP port, stays taken
	v.ports[port] = true
	v.fds, v.last = append(v.fds, int(file.Fd())), append(v.last, -1)
	return port
}

// read takes what has come on all sockets.
func (v *viewers) read() {
	var head [12]byte
	for i, fd := range v.fds {
		for {
			n, _, err := syscall.Recvfrom(fd, head[:], syscall.MSG_DONTWAIT|syscall.MSG_TRUNC)
			if err != nil {
				break
			}
			if n < 12 {
				continue
			}
			seq := binary.BigEndian.Uint16(head[2:])
			if v.last[i] >= 0 {
				v.lost += uint64(seq - uint16(v.last[i]) - 1)
			}
			v.last[i] = int32(seq)
			v.received++
		}
	}
}

func (v *viewers) watch(length time.Duration) {
	ended := time.After(length)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
			v.read()
		}
	}
}

// cpu is the processor time a process has used so far.
func cpu(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		tb.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// socketDrops tells where the kernel has dropped datagrams for want of room.
func socketDrops(tb testing.TB, viewers map[int]bool) string {
	tb.Helper()
	b, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		return err.Error()
	}
	atViewers, elsewhere := 0, 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		drops, err := strconv.Atoi(f[len(f)-1])
		if err != nil {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		port, _ := strconv.ParseInt(hex, 16, 32)
		if viewers[int(port)] {
			atViewers += drops
		} else {
			elsewhere += drops
		}
	}
	return fmt.Sprintf("%d at the viewers, %d elsewhere", atViewers, elsewhere)
}

// TestManyRelays: 500 sessions of 2 Mbit/s, relayed without loss.
func TestManyRelays(t *testing.T) {
	const sessions, rate = 500, 2_000_000 / 8 / 1412
	const length = 8 * time.Second
	lib := testbed.StartGortsplib(t, testbed.GortsplibOptions{WriteQueue: 4096})
	stop := publishPackets(t, lib, "/live", rate)
	defer stop()
	shim := testbed.StartShim(t, lib.Upstream, "--live", "off")
	v := viewers{ports: map[int]bool{}}
	url := "rtsp://" + shim.Addr + "/live"
	for range sessions {
		port := v.open(t)
		c := dialRaw(t, shim.Addr)
		c.send(fmt.Sprintf("SETUP %s/trackID=0 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=%d-%d\r\n\r\n", url, port, port+1))
		play(t, c, url, sessionOf(c.next(5*time.Second)))
	}
	v.watch(2 * time.Second) // the upstream makes up for what it had no time for
	v.lost, v.received = 0, 0
	before, own, began := cpu(t, shim.Pid()), cpu(t, os.Getpid()), time.Now()
	v.watch(length)
	took := time.Since(began).Seconds()
	spent, ours := cpu(t, shim.Pid())-before, cpu(t, os.Getpid())-own
	received, lost := v.received, v.lost
	mbit := float64(received) * 1412 * 8 / took / 1e6
	t.Logf("%d sessions, %.0f Mbit/s for %.1f s: %d packets received, %d lost; shim %.2f CPU-s/s, %.2f CPU-s/GiB; upstream and viewers %.2f CPU-s/s",
		sessions, mbit, took, received, lost, spent.Seconds()/took, spent.Seconds()/(float64(received)*1412/(1<<30)), ours.Seconds()/took)
	if expected := uint64(float64(sessions*rate) * took); received < expected*9/10 {
		t.Errorf("received %d packets, %d were due", received, expected)
	}
	t.Logf("dropped by sockets: %s", socketDrops(t, v.ports))
	if lost > received/10_000 {
		t.Errorf("%d of %d packets lost", lost, received)
	}
	stop()
	log := shim.Stop(t)
	if n := strings.Count(log, "session ended"); n < 100 { // as much as is kept
		t.Errorf("%d sessions ended", n)
	}
}
