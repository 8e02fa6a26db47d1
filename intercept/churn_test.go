package intercept

import (
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"rtspshim/demo"
	"rtspshim/engine"
)

// Viewers come and go at random, those that lead among them: some say goodbye,
// some pause first, some are cut off (datagrams: what an upstream sends over a
// connection that breaks is lost for everybody). Those who stay see nothing of
// it, and nothing is left behind.
func TestLiveChurn(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Run("play", func(t *testing.T) {
		for name, apart := range map[string]bool{"alike": false, "apart": true} {
			t.Run(name, func(t *testing.T) { t.Parallel(); churn(t, apart, lasting(t)) })
		}
	})
	if now := openFiles(t); now > files+2 {
		t.Errorf("%d files and ports open, %d before", now, files)
	}
	for n := 0; runtime.NumGoroutine() > goroutines+2; n++ {
		if n > 500 {
			t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// lasting is how long the churn goes on: SHIM_CHURN=5m makes it that.
func lasting(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("SHIM_CHURN")
	if v == "" {
		return churnTime
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("SHIM_CHURN: %v", err)
	}
	return d
}

// openFiles counts this process's, sockets included; 0 where the system does
// not tell.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Logf("open files are not counted: %v", err)
	}
	return len(list)
}

func churn(t *testing.T, apart bool, lasts time.Duration) {
	up := upstream(t, func(c *demo.Config) { c.LiveApart, c.Timeout = apart, 4*time.Second })
	addr, i := shim(t, "rtsp://"+up.Addr(), engine.Config{}, Config{Live: true, OrphanTimeout: 5 * time.Second})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	var work sync.WaitGroup
	var stay []*viewer
	began := time.Now()
	for n := 0; time.Since(began) < lasts; n++ {
		tcp, how, life := random.IntN(2) == 0, random.IntN(3), time.Duration(random.IntN(2000))*time.Millisecond
		if n%8 == 1 && len(stay) < 6 {
			v := liveViewers(t, addr, 1, len(stay)%2 == 0)[0]
			stay = append(stay, v)
			work.Go(func() { // shows life, as a player does
				for time.Since(began) < lasts {
					time.Sleep(time.Second)
					v.do("OPTIONS", v.url)
				}
			})
		}
		v := newViewer(t, addr, livePath, tcp)
		v.must("PLAY", v.url)
		work.Go(func() {
			time.Sleep(life)
			switch {
			case how == 0 && !tcp:
				_ = v.conn.Close()
				return
			case how == 1:
				v.must("PAUSE", v.url)
				time.Sleep(life / 4)
				v.must("PLAY", v.url)
				time.Sleep(life / 4)
			}
			v.must("TEARDOWN", v.url)
		})
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	}
	work.Wait()
	for n, v := range stay {
		v.more(2)
		v.unbroken(start(v))
		if t.Failed() {
			t.Fatalf("staying viewer %d of %d, tcp %v", n, len(stay), v.tcp)
		}
	}
	for _, v := range stay {
		v.must("TEARDOWN", v.url)
	}
	// Those cut off are left to the upstream's time-out, as they would be there.
	for n := 0; i.Sessions() > 0 || len(up.Sessions()) > 0; n++ {
		if n > 1500 {
			t.Fatalf("left: %d sessions, %+v", i.Sessions(), up.Sessions())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
