package intercept

import (
	"net/netip"
	"strconv"
	"strings"
)

// A Transport header (RFC 2326 §12.39) is a list of choices, each a protocol
// and its parameters. The functions here edit one parameter in place and
// leave every other byte as it came.

// editChoices replaces each choice of a Transport value by what edit makes of
// it. Commas inside quotes do not divide.
func editChoices(value string, edit func(choice string) string) string {
	var out strings.Builder
	for {
		n := indexUnquoted(value, ',')
		if n < 0 {
			out.WriteString(edit(value))
			return out.String()
		}
		out.WriteString(edit(value[:n]))
		out.WriteByte(',')
		value = value[n+1:]
	}
}

// indexUnquoted is strings.IndexByte outside double quotes.
func indexUnquoted(s string, c byte) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == c && !quoted:
			return i
		}
	}
	return -1
}

// param finds a parameter of a choice: the bounds of its value, quotes and
// blanks excluded. A parameter without "=" has an empty value.
func param(choice, name string) (lo, hi int, ok bool) {
	at := 0
	for {
		end := indexUnquoted(choice[at:], ';')
		if end < 0 {
			end = len(choice)
		} else {
			end += at
		}
		lo, hi := at, end
		if eq := strings.IndexByte(choice[at:end], '='); eq >= 0 {
			lo = at + eq + 1
			hi = at + eq
		}
		if strings.EqualFold(strings.TrimSpace(choice[at:hi]), name) {
			if hi == end { // no "="
				return end, end, true
			}
			lo, hi = trim(choice, lo, end)
			return lo, hi, true
		}
		if end == len(choice) {
			return 0, 0, false
		}
		at = end + 1
	}
}

// trim excludes blanks and one pair of quotes.
func trim(s string, lo, hi int) (int, int) {
	blank := func(c byte) bool { return c == ' ' || c == '\t' }
	for lo < hi && blank(s[lo]) {
		lo++
	}
	for hi > lo && blank(s[hi-1]) {
		hi--
	}
	if hi-lo >= 2 && s[lo] == '"' && s[hi-1] == '"' {
		lo, hi = lo+1, hi-1
	}
	return lo, hi
}

func getParam(choice, name string) string {
	lo, hi, _ := param(choice, name)
	return choice[lo:hi]
}

func hasParam(choice, name string) bool {
	_, _, ok := param(choice, name)
	return ok
}

// lastParam is the value of the last parameter of that name: servers that echo
// what they were sent put their own behind it.
func lastParam(choice, name string) (value string, ok bool) {
	editParams(choice, name, func(v string) string { value, ok = v, true; return v })
	return value, ok
}

// editParams replaces the value of every parameter of that name.
func editParams(choice, name string, edit func(value string) string) string {
	for at := 0; at <= len(choice); {
		lo, hi, ok := param(choice[at:], name)
		if !ok {
			break
		}
		lo, hi = lo+at, hi+at
		value := edit(choice[lo:hi])
		choice = choice[:lo] + value + choice[hi:]
		at = lo + len(value)
		if next := indexUnquoted(choice[at:], ';'); next >= 0 {
			at += next + 1
		} else {
			break
		}
	}
	return choice
}

// setParam replaces the value of a parameter that is there.
func setParam(choice, name, value string) string {
	lo, hi, ok := param(choice, name)
	if !ok || choice[lo:hi] == value {
		return choice
	}
	return choice[:lo] + value + choice[hi:]
}

// ports is the value of client_port or server_port: "A-B", or "A" alone, for
// which second is 0.
type ports struct{ first, second int }

func parsePorts(value string) (p ports, ok bool) {
	a, b, two := strings.Cut(value, "-")
	p.first, ok = parsePort(a)
	if ok && two {
		p.second, ok = parsePort(b)
	}
	return p, ok
}

func parsePort(s string) (int, bool) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 16)
	return int(n), err == nil && n > 0
}

// rtcp is the RTCP port: the one named, or the next (RFC 2326 §12.39).
func (p ports) rtcp() int {
	if p.second == 0 {
		return p.first + 1
	}
	return p.second
}

// shift moves both ports by the same distance.
func (p ports) shift(by int) ports {
	p.first += by
	if p.second != 0 {
		p.second += by
	}
	return p
}

func (p ports) String() string {
	if p.second == 0 {
		return strconv.Itoa(p.first)
	}
	return strconv.Itoa(p.first) + "-" + strconv.Itoa(p.second)
}

// isTCP says whether a choice asks for interleaving or another TCP transport.
func isTCP(choice string) bool {
	proto, _, _ := strings.Cut(choice, ";")
	return strings.HasSuffix(strings.ToUpper(strings.TrimSpace(proto)), "/TCP") || hasParam(choice, "interleaved")
}

// isRelayable says whether a choice asks for datagrams to the client itself:
// unicast, its ports named, and no third party's address.
func isRelayable(choice string, client netip.Addr) (asked ports, ok bool) {
	if isTCP(choice) || hasParam(choice, "multicast") {
		return ports{}, false
	}
	if d := getParam(choice, "destination"); d != "" && !isAddr(d, client) {
		return ports{}, false
	}
	asked, ok = parsePorts(getParam(choice, "client_port"))
	return asked, ok && asked.rtcp() <= 0xffff
}

// isAddr says whether s is that address.
func isAddr(s string, addr netip.Addr) bool {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil && a.Unmap().WithZone("") == addr.WithZone("")
}
