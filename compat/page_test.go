package compat_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rtspshim/compat"
	"rtspshim/compat/judge"
	"rtspshim/compat/report"
)

// spoiltResult compares the origin with a proxy that has three faults.
func spoiltResult(t *testing.T) *compat.Result {
	o := startOrigin(t, true, "user")
	addr := strings.TrimSuffix(strings.TrimPrefix(o, "rtsp://"), "/stream")
	f := fault{bunch: 0, answer: func(m string, raw []byte) []byte {
		raw = bytes.Replace(raw, []byte("CSeq:"), []byte("Cseq:"), 1)
		if m == "DESCRIBE" {
			raw = bytes.Replace(raw, []byte("packetization-mode=1"), []byte("packetization-mode=0"), 1)
		}
		return raw
	}, packet: media(func(l *lane, p []byte) [][]byte {
		if l.n%200 == 0 {
			return nil
		}
		return [][]byte{p}
	})}
	r, err := compat.Run(context.Background(), compat.Config{Upstream: o, Shim: startFaulty(t, addr, f), Again: -1, Bounds: quick,
		Only: []string{"options", "play-no-range", "play-minute*"}, Clients: []string{}, Parallel: 4,
		Credentials: url.UserPassword("user", "secret")})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The page works in a browser: no error, nothing from the network, everything
// in its place, and no line wider than a phone.
func TestPageInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed (Debian package chromium)")
	}
	t.Parallel()
	r := spoiltResult(t)
	file := filepath.Join(t.TempDir(), "page.html")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := report.HTML(f, r); err != nil {
		t.Fatal(err)
	}
	// A measure for the DOM to carry: is anything wider than the window?
	_, _ = f.WriteString(`<script>document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
document.querySelector('#filter button.different').click();
document.body.dataset.shown = document.querySelectorAll('details.point:not([hidden])').length;</script>`)
	_ = f.Close()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(src|href)="[^#"][^"]*"|url\(|@import`).Find(text); m != nil {
		t.Errorf("the page needs something from outside: %s", m)
	}
	if bytes.Contains(text, []byte("secret")) || regexp.MustCompile(`Authorization: \w+ [^…]`).Match(text) {
		t.Error("the page shows credentials")
	}
	dump := func(size string) string {
		cmd := exec.Command(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+t.TempDir(),
			"--window-size="+size, "--screenshot="+filepath.Join(t.ArtifactDir(), "page-"+size+".png"), "--enable-logging=stderr", "--dump-dom", "file://"+file)
		var said bytes.Buffer
		cmd.Stderr = &said
		dom, err := cmd.Output()
		if err != nil {
			t.Fatalf("chromium: %v\n%s", err, said.String())
		}
		if strings.Contains(said.String(), "CONSOLE") {
			t.Errorf("the page complains: %s", said.String())
		}
		return string(dom)
	}
	dom := dump("1280,900")
	for _, want := range []string{
		`<h1>2 points are different</h1>`, `id="options"`, `header set|spelling of cseq`, `track 1 video`, `<mark>S</mark>`,
		`c-different`, `<svg`, `class="bars"`, `class="lead"`, `takes minutes: --slow`, `data-shown="2"`,
	} {
		if !regexp.MustCompile(want).MatchString(dom) {
			t.Errorf("the page has no %s", want)
		}
	}
	if n := strings.Count(dom, `class="point"`); n != len(r.Points) {
		t.Errorf("%d of %d points on the page", n, len(r.Points))
	}
	// Headless Chromium makes no window narrower than 500.
	if wide := regexp.MustCompile(`data-wide="(-?\d+)"`).FindStringSubmatch(dump("500,900")); wide == nil || strings.Trim(wide[1], "-0") != "" && wide[1][0] != '-' {
		t.Errorf("the page is wider than a small window by %v", wide)
	}
}

// The table and the JSON say the same as the result.
func TestTableAndJSON(t *testing.T) {
	t.Parallel()
	r := spoiltResult(t)
	var table, text bytes.Buffer
	if err := report.Table(&table, r, false, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"different  options", "spelling of cseq", "upstream  CSeq: …", "shim      Cseq: …", "not run    play-minute", "2 different"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, table.String())
		}
	}
	if err := report.JSON(&text, r); err != nil {
		t.Fatal(err)
	}
	var back compat.Result
	if err := json.Unmarshal(text.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Points) != len(r.Points) || back.Count(judge.Different) != 2 || back.OK() {
		t.Errorf("JSON holds %d points, %d different", len(back.Points), back.Count(judge.Different))
	}
}
