package movie

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Whatever bytes of a movie's header are changed, the tools end with an error
// or a result, in bounded time.
func TestRandomDamage(t *testing.T) {
	var seeds [][]byte
	for _, name := range []string{"h264-bframes-aac.mp4", "hevc-aac.mp4", "h264-aac.mov"} {
		for _, path := range []string{plain(t, name), hinted(name)} {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			seeds = append(seeds, b)
		}
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.mp4"), filepath.Join(dir, "out.mp4")
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range 150 {
		b := bytes.Clone(seeds[i%len(seeds)])
		moov := bytes.LastIndex(b, []byte("moov")) - 4
		for range 1 + rnd.IntN(6) {
			o := moov + rnd.IntN(len(b)-moov-4)
			switch rnd.IntN(3) {
			case 0:
				b[o] = byte(rnd.Uint32())
			case 1:
				binary.BigEndian.PutUint32(b[o:], rnd.Uint32()|0xffff0000)
			case 2:
				binary.BigEndian.PutUint32(b[o&^3:], uint32(rnd.IntN(1000)))
			}
		}
		if err := os.WriteFile(in, b, 0o600); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, hintErr := Hint(in, out, HintConfig{Again: true})
		_, examineErr := Examine(t.Context(), in, ExamineConfig{})
		if d := time.Since(start); d > 5*time.Second {
			t.Fatalf("round %d took %v: %v, %v", i, d, hintErr, examineErr)
		}
	}
}
