package intercept

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// rtpInfo is one entry of an RTP-Info header (RFC 2326 §12.33).
type rtpInfo struct {
	url     string
	seq     uint16
	rtptime uint32
	whole   bool // seq and rtptime are there
}

// editRTPInfo shows each entry of an RTP-Info value to edit and writes back
// the numbers that edit changes; everything else stays as it is.
func editRTPInfo(value string, edit func(*rtpInfo)) string {
	var out strings.Builder
	for len(value) > 0 {
		// A comma ends an entry only before the next "url=": URLs hold commas.
		end := len(value)
		if i := strings.Index(value[1:], "url="); i >= 0 {
			if c := strings.LastIndexByte(value[:i+1], ','); c >= 0 {
				end = c + 1
			}
		}
		out.WriteString(editInfo(value[:end], edit))
		value = value[end:]
	}
	return out.String()
}

func editInfo(entry string, edit func(*rtpInfo)) string {
	e := rtpInfo{url: strings.Trim(value(entry, "url="), `"`)}
	seq, err1 := strconv.ParseUint(value(entry, ";seq="), 10, 16)
	at, err2 := strconv.ParseUint(value(entry, ";rtptime="), 10, 32)
	e.seq, e.rtptime, e.whole = uint16(seq), uint32(at), err1 == nil && err2 == nil
	was := e
	if edit(&e); e == was || !e.whole {
		return entry
	}
	entry = replaceValue(entry, ";seq=", strconv.Itoa(int(e.seq)))
	return replaceValue(entry, ";rtptime=", strconv.FormatUint(uint64(e.rtptime), 10))
}

// bounds finds a parameter's value by its name.
func bounds(entry, name string) (lo, hi int) {
	i := strings.Index(entry, name)
	if i < 0 {
		return 0, 0
	}
	lo = i + len(name)
	hi = lo
	for hi < len(entry) && !strings.ContainsRune(";, \t", rune(entry[hi])) {
		hi++
	}
	return lo, hi
}

func value(entry, name string) string {
	lo, hi := bounds(entry, name)
	return entry[lo:hi]
}

func replaceValue(entry, name, value string) string {
	lo, hi := bounds(entry, name)
	return entry[:lo] + value + entry[hi:]
}

// lastPart is a URL's last path segment, which names a track.
func lastPart(url string) string {
	url = strings.TrimRight(url, "/")
	return url[strings.LastIndexByte(url, '/')+1:]
}

// parseNPT reads a Range header's npt (RFC 2326 §3.6, §12.29): its start,
// "now" and absent meaning now, and its end, 0 where it is open. ok is false
// for other units and what cannot be read.
func parseNPT(header string) (start, end time.Duration, now, ok bool) {
	spec, _, _ := strings.Cut(header, ";") // ";time=" is when, not what
	unit, span, found := strings.Cut(strings.TrimSpace(spec), "=")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "npt") {
		return 0, 0, false, false
	}
	from, to, found := strings.Cut(span, "-")
	from, to = strings.TrimSpace(from), strings.TrimSpace(to)
	if !found || from == "" && to == "" {
		return 0, 0, false, false
	}
	if from == "now" || from == "" {
		now = true
	} else if start, ok = nptTime(from); !ok {
		return 0, 0, false, false
	}
	if to != "" {
		if end, ok = nptTime(to); !ok {
			return 0, 0, false, false
		}
	}
	return start, end, now, true
}

// nptTime reads seconds with a fraction, or hours:minutes:seconds.
func nptTime(s string) (time.Duration, bool) {
	total := 0.0
	parts := strings.Split(s, ":")
	if len(parts) != 1 && len(parts) != 3 {
		return 0, false
	}
	for _, part := range parts {
		if part == "" || strings.Trim(part, "0123456789.") != "" {
			return 0, false
		}
		n, err := strconv.ParseFloat(part, 64)
		if err != nil {
			return 0, false
		}
		total = total*60 + n
	}
	if total > math.MaxInt64/1e9 {
		return 0, false
	}
	return time.Duration(math.Round(total * 1e9)), true
}

// formatNPT writes a Range header's value; an end of 0 leaves it open.
func formatNPT(start, end time.Duration) string {
	if end == 0 {
		return fmt.Sprintf("npt=%.6f-", start.Seconds())
	}
	return fmt.Sprintf("npt=%.6f-%.6f", start.Seconds(), end.Seconds())
}
