package engine

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"rtspshim/engine/hint"
)

const (
	passageTime  = time.Second // of a movie
	passageLate  = time.Second // how long after its sample's time a packet may be due, to be found
	passagesMost = 1 << 17     // candidates kept
	passageReads = 2           // at once: a disk that does not answer leaves one to the others
)

// passage is what a proof needs of the packets that are due in the n-th second
// of a movie.
type passage struct {
	tracks [][]candidate // in the order they are due
	last   bool          // the movie ends in it
}

// candidate is a packet of the movie, its payload as a sum.
type candidate struct {
	sum    uint64
	size   int
	bits   uint16
	seq    uint16
	time   uint32
	sample int
	due    time.Duration
}

// passages keeps what proofs have read last: the viewers of a movie are proved
// by the same packets.
type passages struct {
	turns chan struct{} // holds a token for each who reads

	mu    sync.Mutex
	known map[place]passage
	order []place // oldest first
	held  int     // candidates
}

func newPassages() *passages {
	return &passages{turns: make(chan struct{}, passageReads), known: map[place]passage{}}
}

type place struct {
	file *hint.File // as it was when opened: a changed one is another
	n    int
}

// take returns passages first to last of a movie, and fewer at its end. What is
// not known is read, all at once.
func (k *passages) take(f *hint.File, first, last int) ([]passage, error) {
	all := make([]passage, last-first+1)
	if miss, _ := k.find(f, first, all); miss >= 0 {
		// A few at a time: there is no hurry, and reading would take the processors
		// from requests. The next one may find what it wants.
		k.turns <- struct{}{}
		defer func() { <-k.turns }()
		if miss, until := k.find(f, first, all); miss >= 0 {
			read, err := readPassages(f, first+miss, first+until)
			if err != nil {
				return nil, err
			}
			copy(all[miss:], read)
			k.keep(f, first+miss, read)
		}
	}
	if end := slices.IndexFunc(all, func(p passage) bool { return p.last }); end >= 0 {
		all = all[:end+1]
	}
	return all, nil
}

// find fills in what is known, and returns the first and the last that is not, -1
// where all is.
func (k *passages) find(f *hint.File, first int, all []passage) (miss, until int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	miss = -1
	for i := range all {
		var ok bool
		if all[i], ok = k.known[place{f, first + i}]; !ok {
			if until = i; miss < 0 {
				miss = i
			}
		}
	}
	return miss, until
}

func (k *passages) keep(f *hint.File, first int, all []passage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, p := range all {
		at := place{f, first + i}
		if _, known := k.known[at]; !known {
			k.known[at] = p
			k.order = append(k.order, at)
			k.held += 1 + p.size()
		}
	}
	for k.held > passagesMost {
		k.held -= 1 + k.known[k.order[0]].size()
		delete(k.known, k.order[0])
		k.order = k.order[1:]
	}
}

func (p passage) size() (n int) {
	for _, t := range p.tracks {
		n += len(t)
	}
	return n
}

// readPassages reads a stretch of the movie.
func readPassages(f *hint.File, first, last int) ([]passage, error) {
	from, to := time.Duration(first)*passageTime, time.Duration(last+1)*passageTime
	scan, err := f.Scan(f, hint.Config{AsHinted: true}, max(0, from-passageLate))
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	all := make([]passage, last-first+1)
	for i := range all {
		all[i].tracks = make([][]candidate, len(f.HintTracks()))
	}
	var hash maphash.Hash
	hash.SetSeed(sumSeed)
	end := first // the passage of the last packet
	for p := (hint.Packet{}); ; {
		if !scan.Next(&p) {
			for ; end <= last; end++ {
				all[end-first].last = true
			}
			return all, scan.Err()
		}
		if p.Due >= to {
			return all, nil
		}
		n := max(0, int(p.Due/passageTime))
		if end = max(end, n); n < first {
			continue
		}
		hash.Reset()
		for _, b := range p.Payload {
			_, _ = hash.Write(b)
		}
		t := &all[n-first].tracks[p.Track]
		*t = append(*t, candidate{
			sum: hash.Sum64(), size: p.Size, bits: p.Bits &^ 0xc000, seq: p.Seq, time: p.Time, sample: p.Sample, due: p.Due,
		})
	}
}
