package intercept

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParam(t *testing.T) {
	const choice = `RTP/AVP;unicast; client_port = 5000-5001 ;mode="PLAY;x=1,2";ssrc=`
	for name, want := range map[string]string{"client_port": "5000-5001", "MODE": "PLAY;x=1,2", "unicast": "", "ssrc": "", "x": "", "RTP/AVP": ""} {
		if got := getParam(choice, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]bool{"unicast": true, "ssrc": true, "x": false, "mode": true} {
		if hasParam(choice, name) != want {
			t.Errorf("%s there: %v", name, !want)
		}
	}
	if got, want := setParam(choice, "mode", "RECORD"), strings.Replace(choice, "PLAY;x=1,2", "RECORD", 1); got != want {
		t.Errorf("got %q", got)
	}
	if got := setParam(choice, "source", "1.2.3.4"); got != choice {
		t.Errorf("absent parameter was added: %q", got)
	}
}

func TestIsRelayable(t *testing.T) {
	client := netip.MustParseAddr("10.0.0.9")
	for choice, want := range map[string]string{
		"RTP/AVP;unicast;client_port=5000-5001":                       "5000-5001",
		"RTP/AVP/UDP;unicast;client_port=5000":                        "5000",
		"RTP/SAVP;client_port=5001-5002":                              "5001-5002",
		"MP2T/H2221/UDP;unicast;client_port=5000-5001":                "5000-5001",
		"RTP/AVP;unicast;destination=10.0.0.9;client_port=5000-5001":  "5000-5001",
		"RTP/AVP;unicast;destination=10.0.0.10;client_port=5000-5001": "",
		"RTP/AVP;unicast;destination=host;client_port=5000-5001":      "",
		"RTP/AVP;multicast;client_port=5000-5001":                     "",
		"RTP/AVP/TCP;unicast;interleaved=0-1":                         "",
		"RTP/AVP/TCP;unicast;client_port=5000-5001":                   "",
		"RTP/AVP;unicast":                         "",
		"RTP/AVP;unicast;client_port=0-1":         "",
		"RTP/AVP;unicast;client_port=65535":       "",
		"RTP/AVP;unicast;client_port=70000-70001": "",
		"RTP/AVP;unicast;client_port=x":           "",
	} {
		got, ok := isRelayable(choice, client)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s: %v %v, want %q", choice, got, ok, want)
		}
	}
}

// FuzzTransport: looking at a Transport header changes nothing, and a port
// that is replaced and put back leaves every octet as it was.
func FuzzTransport(f *testing.F) {
	for _, s := range []string{
		"RTP/AVP;unicast;client_port=5000-5001", "RTP/AVP/TCP;unicast;interleaved=0-1,RTP/AVP;unicast;client_port=4-5",
		`RTP/AVP;mode="PLAY, RECORD";client_port="6-7"`, ";;=;client_port", ",,,", `"`, " RTP/AVP ; client_port = 8 - 9 ",
		"RTP/AVP;unicast;source=127.0.0.1;client_port=40020-40021;server_port=6970-6971;ssrc=3B0B435B",
	} {
		f.Add(s)
	}
	client := netip.MustParseAddr("::1")
	f.Fuzz(func(t *testing.T, value string) {
		if got := editChoices(value, func(c string) string { isRelayable(c, client); return c }); got != value {
			t.Fatalf("%q became %q", value, got)
		}
		once := editChoices(value, func(c string) string {
			was := getParam(c, "client_port")
			if _, ok := parsePorts(was); !ok {
				return c
			}
			moved := setParam(c, "client_port", "7-8")
			if getParam(moved, "client_port") != "7-8" {
				t.Fatalf("%q: port not replaced: %q", c, moved)
			}
			return setParam(moved, "client_port", was)
		})
		if once != value {
			t.Fatalf("%q came back as %q", value, once)
		}
	})
}

func TestEditParams(t *testing.T) {
	const choice = `RTP/AVP;source=192.0.2.1;layers="a;source=x";append;source=127.0.0.1`
	got := editParams(choice, "Source", func(v string) string {
		if v == "127.0.0.1" {
			return "::1"
		}
		return v
	})
	if want := strings.Replace(choice, "127.0.0.1", "::1", 1); got != want {
		t.Errorf("got %q", got)
	}
	if v, ok := lastParam(choice, "source"); v != "127.0.0.1" || !ok {
		t.Errorf("last: %q, %v", v, ok)
	}
	if _, ok := lastParam(choice, "server_port"); ok {
		t.Error("found what is not there")
	}
}
