package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskBlock = 1 << 20
	diskDepth = 4 // reads at once
)

// diskLimit reads blocks of a file of its own at random, past the page cache.
func diskLimit(ctx context.Context, cfg LimitConfig) (l Limit, err error) {
	l = Limit{Name: LimitDisk, What: fmt.Sprintf("O_DIRECT, random reads of %d KiB, %d at once", diskBlock>>10, diskDepth)}
	path, err := diskFile(ctx, cfg)
	if path != "" {
		defer func() { err = errors.Join(err, os.Remove(path)) }()
	}
	if err != nil {
		return l, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return l, fmt.Errorf("O_DIRECT in %s: %w", cfg.Dir, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var mu sync.Mutex
	var cpu time.Duration
	var octets int64
	var work sync.WaitGroup
	began := time.Now()
	for range diskDepth {
		work.Go(func() {
			c, n, e := readBlocks(ctx, fd, cfg)
			mu.Lock()
			defer mu.Unlock()
			cpu, octets, err = cpu+c, octets+n, errors.Join(err, e)
		})
	}
	work.Wait()
	if err != nil || octets == 0 {
		return l, errors.Join(err, ctx.Err())
	}
	l.Cost = cpu.Seconds() / (float64(octets) / (1 << 30))
	l.Gbps = float64(octets) * 8 / 1e9 / time.Since(began).Seconds()
	return l, nil
}

// diskFile writes the file to read; its path is "" if there is none.
func diskFile(ctx context.Context, cfg LimitConfig) (path string, err error) {
	f, err := os.CreateTemp(cfg.Dir, "shim-bench-*")
	if err != nil {
		return "", err
	}
	block := make([]byte, diskBlock)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	for at := int64(0); at < cfg.FileSize && err == nil; at += diskBlock {
		if err = ctx.Err(); err == nil {
			_, err = f.Write(block)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	return f.Name(), errors.Join(err, f.Close())
}

// readBlocks reads for as long as a loop lasts.
func readBlocks(ctx context.Context, fd int, cfg LimitConfig) (cpu time.Duration, octets int64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Mapped memory is aligned as O_DIRECT wants it.
	b, err := unix.Mmap(-1, 0, diskBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 0, 0, os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(b) }()
	used, began := threadTime(), time.Now()
	for time.Since(began) < cfg.Duration && ctx.Err() == nil {
		n, err := unix.Pread(fd, b, rand.Int64N(cfg.FileSize/diskBlock)*diskBlock)
		if err != nil {
			return 0, 0, os.NewSyscallError("pread", err)
		}
		octets += int64(n)
	}
	return time.Duration(threadTime() - used), octets, nil
}
