package intercept

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"rtspshim/engine/hint"
)

// proved remembers which movies were proved, each with the session
// description it was proved under, in a small file that outlives the shim.
type proved struct {
	mu   sync.Mutex
	file string // "" keeps nothing
	keys map[string]bool
	list []string // oldest first
}

const maxProved = 10_000

// openProved reads the file, if there is one.
func openProved(file string) (*proved, error) {
	p := &proved{file: file, keys: map[string]bool{}}
	if file == "" {
		return p, nil
	}
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p.list)
	}
	if err != nil {
		return p, fmt.Errorf("proved movies: %w", err)
	}
	p.list = p.list[max(0, len(p.list)-maxProved):]
	for _, k := range p.list {
		p.keys[k] = true
	}
	return p, nil
}

// key names a movie file as it is now, and a session description without
// what varies by request (its o= line, RFC 8866 §5.2).
func (p *proved) key(f *hint.File, sdp string) string {
	h := sha256.New()
	for line := range strings.Lines(sdp) {
		if !strings.HasPrefix(line, "o=") {
			_, _ = h.Write([]byte(line))
		}
	}
	return f.Identity() + " " + hex.EncodeToString(h.Sum(nil)[:12])
}

func (p *proved) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[key]
}

// add remembers a key and writes the file anew.
func (p *proved) add(key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys[key] {
		return nil
	}
	p.keys[key] = true
	p.list = append(p.list, key)
	if len(p.list) > maxProved {
		delete(p.keys, p.list[0])
		p.list = p.list[1:]
	}
	if p.file == "" {
		return nil
	}
	b, err := json.MarshalIndent(p.list, "", "\t")
	if err != nil {
		return err
	}
	tmp := p.file + ".new"
	if err := os.MkdirAll(filepath.Dir(p.file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, p.file)
}
