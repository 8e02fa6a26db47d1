package disk

import (
	"testing"
	"time"
)

// hintData is what engine/hint's Reader.Load asks for.
type hintData interface {
	At(off int64, n int) []byte
}

var _ hintData = (*Set)(nil)

// Once it runs, nothing is allocated: not for reading, finding, handing over.
func TestNoAllocations(t *testing.T) {
	eachMode(t, func(t *testing.T, c Config) {
		const block = 64 << 10
		name, want := movie(t, t.TempDir(), "movie", 64*block)
		c.BlockSize, c.Memory, c.Cycle = block, 16*block, 10*time.Second
		s, _ := open(t, c)
		st, in := stream(t, s, name, Demand{})
		defer st.Close()
		i := int64(0)
		before := s.Stats().Reads
		if n := testing.AllocsPerRun(200, func() {
			set := st.NewSet()
			off := i * 8 * block % int64(len(want))
			i++
			set.Want(off+100, 4*block)
			set.Want(off+5*block, 2*block)
			if err := set.Read(time.Duration(i), time.Time{}); err != nil {
				t.Fatal(err)
			}
			<-in
			if set.Err() != nil || set.At(off+100, 1)[0] != want[off+100] || set.At(off+5*block, 1)[0] != want[off+5*block] {
				t.Fatal(set.Err())
			}
			set.Release()
		}); n > 0 {
			t.Errorf("%v allocations for a set", n)
		}
		if st := s.Stats(); st.Reads-before < 200 {
			t.Errorf("%+v", st)
		}
	})
}

// The heap gives up first what is needed last, and the pool finds what it holds.
func TestPool(t *testing.T) {
	const n = 64
	var p pool
	p.adopt(make([]byte, n*minBlock), minBlock)
	f := &File{id: 1}
	for i := range int64(n) {
		b := p.heap[0]
		p.take(b)
		if p.blocks[b].file != nil {
			t.Fatal("took what holds something")
		}
		p.name(b, f, i)
		p.give(b, (i*37)%n)
		if p.find(f, i) != b || p.find(f, i+1) != none {
			t.Fatal("not found")
		}
	}
	p.blocks[p.find(f, 10)].key, p.blocks[p.find(f, 20)].key = unneeded-5, unneeded-4
	p.order()
	for i := range n {
		b := p.heap[0]
		for _, o := range p.heap {
			if p.blocks[o].key > p.blocks[b].key {
				t.Fatalf("%d: not the one needed last", i)
			}
		}
		if i == 0 && p.blocks[b].n != 20 || i == 1 && p.blocks[b].n != 10 {
			t.Errorf("%d: block %d", i, p.blocks[b].n)
		}
		p.take(b)
		p.unname(b)
	}
	if f.blocks != 0 || len(p.heap) != 0 {
		t.Error(f.blocks, len(p.heap))
	}
}
