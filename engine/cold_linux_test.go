package engine_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rtspshim/engine"
)

// TestColdMovies plays movies that nobody has read, two viewers each. Every
// block is read once, by our count and the kernel's; nothing is left in the page
// cache, of what is proved neither; and the pool is as large as it was to be.
func TestColdMovies(t *testing.T) {
	const movies, memory, block = 24, 48 << 20, 256 << 10
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		t.Skip("no disk below ", dir)
	}
	whole, err := os.ReadFile("../testdata/hinted/mpeg4-aac.mp4")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range movies {
		name := filepath.Join(dir, fmt.Sprint(i, ".mp4"))
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		dropCached(t, name)
		names = append(names, name)
	}
	if cachedPages(t, names[0]) > 0 {
		t.Skip("the file system keeps files in the page cache")
	}
	if f := openFile(t, names[0]); !uncachedReads(f) {
		t.Skip("the kernel has no RWF_DONTCACHE for files in ", dir)
	}
	dropCached(t, names[0])
	e := open(t, engine.Config{Memory: memory})
	before := resident(t)
	if err := e.OpenDisk(); err != nil {
		t.Fatal(err)
	}
	read := readByUs(t)
	var all []*viewer
	for i, name := range names {
		f, err := e.OpenMovie(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := e.NewProof(f, len(f.HintTracks()), 0, 8); err != nil {
			t.Fatal(err)
		}
		for k := range 2 {
			v := newViewer(t, f)
			if v.overTCP(); i%2 == 0 {
				v.spec.TCP = nil
				v.overUDP(e)
			}
			v.spec.Base, v.spec.End = time.Now().Add(time.Duration(k)*300*time.Millisecond), 5*time.Second
			if err := v.open(e).Start(nil); err != nil {
				t.Fatal(err)
			}
			all = append(all, v)
		}
	}
	for _, v := range all {
		if err := <-v.done; err != nil {
			t.Fatal(err)
		}
	}
	blocks := uint64(movies * (len(whole) + block - 1) / block)
	d := e.DiskStats()
	// A proof reads the movie's first four seconds, and its tables, by itself.
	proofs := int64(movies * len(whole))
	if d.Blocks < movies || d.Blocks > blocks || d.Bytes > uint64(movies*(len(whole)+4096)) || d.Hits < d.Blocks {
		t.Errorf("%d blocks read of %d, %d bytes of %d; %d shared", d.Blocks, blocks, d.Bytes, proofs, d.Hits)
	}
	if n := readByUs(t) - read; n > 2*proofs+movies<<16 {
		t.Errorf("the kernel read %d bytes for files of %d", n, proofs)
	}
	for _, name := range names {
		if n := cachedPages(t, name); n > 0 {
			t.Errorf("%s: %d pages left in the page cache", name, n)
		}
	}
	if d.PoolBlocks*block > memory {
		t.Errorf("%d blocks in the pool", d.PoolBlocks)
	}
	if grown := resident(t) - before; grown > memory+8<<20 && !raced {
		t.Errorf("%d bytes more resident, with --memory %d", grown, memory)
	}
	t.Logf("%d blocks in %d reads, %d shared", d.Blocks, d.Reads, d.Hits)
	if _, err := os.ReadFile(names[0]); err != nil || cachedPages(t, names[0]) == 0 {
		t.Error("the witness is blind: ", err)
	}
}

func openFile(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func uncachedReads(f *os.File) bool {
	_, err := unix.Preadv2(int(f.Fd()), [][]byte{make([]byte, 4096)}, 0, unix.RWF_DONTCACHE)
	return err == nil
}

func dropCached(t *testing.T, name string) {
	t.Helper()
	f := openFile(t, name)
	if err := unix.Fsync(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// cachedPages is how much of a file is in the page cache, as cachestat(2) says.
func cachedPages(t *testing.T, name string) uint64 {
	t.Helper()
	var s unix.Cachestat_t
	if err := unix.Cachestat(uint(openFile(t, name).Fd()), &unix.CachestatRange{}, &s, 0); err != nil {
		t.Skip("needs cachestat(2) of Linux 6.5: ", err)
	}
	return s.Cache
}

// readByUs is what the kernel has read from disks for this process (proc(5), io).
func readByUs(t *testing.T) (n int64) {
	t.Helper()
	return procNumber(t, "/proc/self/io", "read_bytes:")
}

// resident is this process's memory, but for files and what Go has in use.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return procNumber(t, "/proc/self/status", "RssAnon:")<<10 - int64(m.HeapInuse+m.StackInuse)
}

func procNumber(t *testing.T, file, name string) (n int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n"+name)
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("%s: %v in %q", name, err, b)
	}
	return n
}
