package disk

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Reading leaves the page cache as it was, O_DIRECT or not: fincore(1) counts.
func TestPageCache(t *testing.T) {
	if _, err := exec.LookPath("fincore"); err != nil {
		t.Skip("fincore of util-linux is missing: ", err)
	}
	eachMode(t, func(t *testing.T, c Config) {
		dir := t.TempDir()
		if inMemory(t, dir) {
			t.Skip("files of ", dir, " are nowhere but in the page cache")
		}
		name, want := movie(t, dir, "movie", 16<<20)
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil || cached(t, name) > 0 {
			t.Fatal("the page cache keeps the file: ", err)
		}
		closed(t, f)
		c.Cycle, c.Memory = 20*time.Millisecond, 8<<20
		s, _ := open(t, c)
		v := view(t, s, name, want, 1<<20, s.NextCycle(time.Now()).Add(s.Cycle()))
		for v.ask(t) {
			if err := v.take(t); err != nil {
				t.Fatal(err)
			}
		}
		v.close()
		if n := cached(t, name); n > 64<<10 {
			t.Errorf("%d bytes left in the page cache", n)
		}
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
		if n := cached(t, name); n != int64(len(want)) { // the witness can see
			t.Errorf("fincore sees %d bytes of %d", n, len(want))
		}
	})
}

func cached(t *testing.T, name string) int64 {
	out, err := exec.Command("fincore", "--json", "--bytes", "--output", "RES", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ Fincore []struct{ Res json.Number } }
	if err := json.Unmarshal(out, &v); err != nil || len(v.Fincore) != 1 {
		t.Fatalf("%s: %v", out, err)
	}
	n, err := v.Fincore[0].Res.Int64()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// inMemory reports whether there is no disk below a folder.
func inMemory(t testing.TB, dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Type == unix.TMPFS_MAGIC
}

func init() { kernelReads = readBytes }

func readBytes(t testing.TB, dir string) (int64, bool) {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Logf("no count by the kernel: %v", err)
		return 0, false
	}
	var n int64
	if _, err := fmt.Sscanf(string(b[strings.Index(string(b), "\nread_bytes:")+1:]), "read_bytes: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n, !inMemory(t, dir)
}
