package disk

import (
	"errors"
	"math"
	"math/bits"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// mapMemory maps memory outside of the Go heap, at the start of a huge page: of
// those the kernel has fewer to look up for a read. Mapped is for unmapMemory.
func mapMemory(size int) (memory, mapped []byte, err error) {
	mapped, err = unix.Mmap(-1, 0, size+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	skip := int(-uintptr(unsafe.Pointer(&mapped[0])) % hugePage)
	memory = mapped[skip : skip+size : skip+size]
	if err := populate(memory); err != nil {
		return nil, nil, errors.Join(err, unmapMemory(mapped))
	}
	return memory, mapped, nil
}

func unmapMemory(mapped []byte) error { return unix.Munmap(mapped) }

// blockState is where a block stands.
type blockState uint8

const (
	spare   blockState = iota // in the heap, with or without a part of a file
	fresh                     // to be put into a lane
	queued                    // in a lane of its file
	reading                   // in a read under way
	ready                     // read, and held by sets
)

// block is the unit of memory: an aligned part of one file, or nothing yet.
// Blocks are named by their number in the pool; none is -1.
type block struct {
	file *File
	n    int64         // which block of the file
	at   time.Duration // movie time of who held it last
	left time.Duration // when it was let go last

	key   int64 // what the heap is ordered by
	place int32 // in the heap, none outside of it
	chain int32 // next with the same hash

	prev, next int32 // in a lane
	lane       uint8
	state      blockState
	alone      bool // read by itself, after a joined read failed

	refs    int32 // sets that hold it
	waiting *Set  // first of them that waits for it
	pin     int32 // which of its pins
}

const none = -1

// pool is all memory: blocks found by file and number, and a heap of those
// nobody holds, with the one to be given up first at its top.
type pool struct {
	memory []byte
	size   int // of a block, in bytes
	blocks []block
	table  []int32 // heads of chains, by hash
	shift  int
	heap   []int32
}

func (p *pool) adopt(memory []byte, size int) {
	n := len(memory) / size
	width := bits.Len(uint(2 * n))
	*p = pool{memory: memory, size: size, blocks: make([]block, n), table: make([]int32, 1<<width), shift: 64 - width,
		heap: make([]int32, 0, n)}
	for i := range p.table {
		p.table[i] = none
	}
	for i := range p.blocks {
		p.blocks[i] = block{chain: none, prev: none, next: none}
		p.give(int32(i), empty)
	}
}

func (p *pool) bytes(i int32) []byte {
	at := int(i) * p.size
	return p.memory[at : at+p.size : at+p.size]
}

func (p *pool) hash(f *File, n int64) *int32 {
	return &p.table[((f.id<<32)^uint64(n))*0x9e3779b97f4a7c15>>p.shift]
}

// find returns the block that holds, or will hold, block n of the file.
func (p *pool) find(f *File, n int64) int32 {
	i := *p.hash(f, n)
	for i != none && (p.blocks[i].file != f || p.blocks[i].n != n) {
		i = p.blocks[i].chain
	}
	return i
}

// name makes block i hold block n of the file.
func (p *pool) name(i int32, f *File, n int64) {
	b, head := &p.blocks[i], p.hash(f, n)
	b.file, b.n, b.chain = f, n, *head
	*head = i
	f.blocks++
}

// unname makes block i hold nothing, and returns the file it was of.
func (p *pool) unname(i int32) *File {
	b := &p.blocks[i]
	f := b.file
	at := p.hash(f, b.n)
	for *at != i {
		at = &p.blocks[*at].chain
	}
	*at = b.chain
	b.file, b.chain, b.alone = nil, none, false
	f.blocks--
	return f
}

// What the heap is ordered by is when a block is expected to be needed again,
// in nanoseconds since the scheduler's start: the block needed last goes first
// (Belady). Those nobody is expected to need come before, oldest first, and
// before them those that hold nothing.
const (
	empty    = math.MaxInt64
	unneeded = math.MaxInt64 / 2
)

// give puts block i into the heap.
func (p *pool) give(i int32, key int64) {
	b := &p.blocks[i]
	b.state, b.key = spare, key
	p.heap = append(p.heap, i)
	b.place = int32(len(p.heap) - 1)
	p.up(len(p.heap) - 1)
}

// take takes block i out of the heap.
func (p *pool) take(i int32) {
	at, last := int(p.blocks[i].place), len(p.heap)-1
	p.blocks[i].place = none
	moved := p.heap[last]
	p.heap = p.heap[:last]
	if at < last {
		p.set(at, moved)
		p.down(at)
		p.up(at)
	}
}

func (p *pool) set(at int, i int32) {
	p.heap[at] = i
	p.blocks[i].place = int32(at)
}

func (p *pool) above(a, b int) bool { return p.blocks[p.heap[a]].key > p.blocks[p.heap[b]].key }

func (p *pool) swap(a, b int) {
	i, j := p.heap[a], p.heap[b]
	p.set(a, j)
	p.set(b, i)
}

func (p *pool) up(at int) {
	for at > 0 && p.above(at, (at-1)/2) {
		p.swap(at, (at-1)/2)
		at = (at - 1) / 2
	}
}

func (p *pool) down(at int) {
	for {
		child := 2*at + 1
		if child+1 < len(p.heap) && p.above(child+1, child) {
			child++
		}
		if child >= len(p.heap) || !p.above(child, at) {
			return
		}
		p.swap(at, child)
		at = child
	}
}

// order makes the heap a heap again after keys were changed.
func (p *pool) order() {
	for at := len(p.heap)/2 - 1; at >= 0; at-- {
		p.down(at)
	}
}

// lane is a list of blocks of one file that wait to be read.
type lane struct{ head, tail int32 }

// The lanes of a file.
const (
	urgent = iota // due before the next cycle begins
	batch
	lanes
)

// append puts block i at the end of a lane of its file.
func (p *pool) append(l uint8, i int32) {
	b := &p.blocks[i]
	q := &b.file.lanes[l]
	b.state, b.lane, b.prev, b.next = queued, l, q.tail, none
	if q.tail == none {
		q.head = i
	} else {
		p.blocks[q.tail].next = i
	}
	q.tail = i
}

// unlink takes block i out of its lane.
func (p *pool) unlink(i int32) {
	b := &p.blocks[i]
	q := &b.file.lanes[b.lane]
	if b.prev == none {
		q.head = b.next
	} else {
		p.blocks[b.prev].next = b.next
	}
	if b.next == none {
		q.tail = b.prev
	} else {
		p.blocks[b.next].prev = b.prev
	}
	b.prev, b.next = none, none
}
