package proxy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"testing"
)

func TestBase64ReaderPadding(t *testing.T) {
	in := base64.StdEncoding.EncodeToString([]byte("OPTIONS")) + "\r\n " + base64.StdEncoding.EncodeToString([]byte(" * RTSP/1.0\r\n\r\n"))
	for n := 1; n < 20; n++ {
		got, err := io.ReadAll(&base64Reader{src: &pieces{[]byte(in), n}})
		if err != nil || string(got) != "OPTIONS * RTSP/1.0\r\n\r\n" {
			t.Errorf("in pieces of %d: %q, %v", n, got, err)
		}
	}
}

// FuzzBase64Reader: what Go's own decoder can read, the stream decoder reads
// alike; anything else ends with an error, the undecoded rest kept.
func FuzzBase64Reader(f *testing.F) {
	f.Add([]byte("T1BUSU9OUw=="), uint8(1))
	f.Add([]byte("T1BU\nSU9O====Uw"), uint8(5))
	f.Add(bytes.Repeat([]byte(" "), 3000), uint8(200))
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		r := &base64Reader{src: &pieces{bytes.Clone(in), int(piece) + 1}}
		got, err := io.ReadAll(r)
		if err != nil && !errors.Is(err, errNotBase64) {
			t.Fatalf("error %v", err)
		}
		plain := bytes.ReplaceAll(bytes.ReplaceAll(in, []byte(" "), nil), []byte("\t"), nil)
		if want, werr := base64.StdEncoding.DecodeString(string(plain)); werr == nil && !bytes.Equal(got, want) {
			t.Fatalf("%q decoded as %q, want %q", in, got, want)
		}
		var back bytes.Buffer
		if _, err := (base64Writer{&back}).Write(got); err != nil {
			t.Fatal(err)
		}
		if again, err := io.ReadAll(&base64Reader{src: &back}); err != nil || !bytes.Equal(again, got) {
			t.Fatalf("encoded and decoded: %q, %v", again, err)
		}
	})
}
