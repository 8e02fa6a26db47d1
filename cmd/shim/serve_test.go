package main

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A profile is written whether the run fails or not, and what it ended with is
// still told.
func TestProfiled(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cpu.pprof")
	broken := errors.New("broken")
	if err := profiled(name, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v; want %v", err, broken)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, z); n == 0 || err != nil {
		t.Errorf("%d octets, %v", n, err)
	}
	if err := profiled(t.TempDir(), func() error { t.Error("run without its profile"); return nil }); err == nil {
		t.Error("a directory was taken for a file")
	}
}
