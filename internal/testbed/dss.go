package testbed

import (
	"crypto/md5"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// DSSOptions says what Darwin Streaming Server shall serve. The zero value is an
// empty folder on 127.0.0.1, open to anybody.
type DSSOptions struct {
	MoviesFolder string            // absolute; hinted movies are served as /NAME. Empty: a new one
	Movies       []string          // files, linked into the folder
	Host         string            // address to listen on; 127.0.0.1. Darwin has no IPv6
	Auth         Auth              // NoAuth or DigestMD5
	Prefs        map[string]string // server preferences to override, by name (see its streamingserver.xml)
}

// DSS is a running Darwin Streaming Server.
type DSS struct {
	Upstream
	MoviesFolder string
}

// dssRealm is Darwin's own default.
const dssRealm = "Streaming Server"

var dssReady = regexp.MustCompile(`^Streaming Server done starting up`)

// StartDSS starts the Darwin Streaming Server that SHIM_TEST_DSS names and
// returns when it listens.
func StartDSS(tb testing.TB, o DSSOptions) *DSS {
	tb.Helper()
	binary := named(tb, "SHIM_TEST_DSS", "Darwin Streaming Server")
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.MoviesFolder == "" {
		o.MoviesFolder = tb.TempDir()
	}
	for _, movie := range o.Movies {
		if err := os.Symlink(movie, filepath.Join(o.MoviesFolder, filepath.Base(movie))); err != nil {
			tb.Fatalf("DSS: %v", err)
		}
	}
	dir := tb.TempDir()
	switch o.Auth {
	case NoAuth:
	case DigestMD5:
		dssProtect(tb, o.MoviesFolder, dir)
	default:
		tb.Skipf("the testbed sets up no %s authentication for Darwin Streaming Server", o.Auth)
	}
	port := FreePort(tb, o.Host)
	config := filepath.Join(dir, "streamingserver.xml")
	if err := os.WriteFile(config, []byte(dssConfig(tb, o, dir, port)), 0o600); err != nil {
		tb.Fatalf("DSS: %v", err)
	}
	startProcess(tb, exec.Command(binary, "-d", "-c", config), dssReady).awaitReady(tb)
	return &DSS{
		Upstream:     Upstream{Name: "dss", Addr: net.JoinHostPort(o.Host, fmt.Sprint(port)), Auth: o.Auth},
		MoviesFolder: o.MoviesFolder,
	}
}

// dssProtect asks for credentials on everything in folder.
func dssProtect(tb testing.TB, folder, dir string) {
	tb.Helper()
	digest := md5.Sum([]byte(User + ":" + dssRealm + ":" + Pass)) // RFC 2617 section 3.2.2.2
	for path, text := range map[string]string{
		filepath.Join(folder, "qtaccess"): "<Limit READ WRITE>\nrequire valid-user\n</Limit>\nrequire valid-user\n",
		filepath.Join(dir, "qtusers"):     fmt.Sprintf("realm %s\n%s:*:%x\n", dssRealm, User, digest),
		filepath.Join(dir, "qtgroups"):    "# none\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			tb.Fatalf("DSS: %v", err)
		}
	}
}

// dssConfig returns a configuration file. Darwin fills in what is not said.
func dssConfig(tb testing.TB, o DSSOptions, dir string, port int) string {
	tb.Helper()
	me, err := user.Current()
	if err != nil {
		tb.Fatalf("DSS: user: %v", err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		tb.Fatalf("DSS: group: %v", err)
	}
	prefs := map[string]string{
		"bind_ip_addr": o.Host, "movie_folder": o.MoviesFolder,
		// Started as root it would become qtss, whom no machine knows any more.
		"run_user_name": me.Username, "run_group_name": group.Name,
		"error_logfile_dir": dir, "pid_file": filepath.Join(dir, "pid"), "module_folder": filepath.Join(dir, "modules"),
		"auto_restart": "false", "screen_logging": "true", "enable_monitor_stats_file": "false",
		"authentication_scheme": "digest", "default_authorization_realm": dssRealm,
		"maximum_bandwidth": "-1", "maximum_connections": "-1",
	}
	for name, value := range o.Prefs {
		prefs[name] = value
	}
	var c strings.Builder
	c.WriteString("<?xml version =\"1.0\"?>\n<CONFIGURATION>\n<SERVER>\n")
	fmt.Fprintf(&c, "<LIST-PREF NAME=\"rtsp_port\" TYPE=\"UInt16\"><VALUE>%d</VALUE></LIST-PREF>\n", port)
	for name, value := range prefs {
		fmt.Fprintf(&c, "<PREF NAME=\"%s\" TYPE=\"%s\">%s</PREF>\n", name, dssType(name, value), value)
	}
	c.WriteString("</SERVER>\n")
	fmt.Fprintf(&c, "<MODULE NAME=\"QTSSAccessLogModule\"><PREF NAME=\"request_logfile_dir\">%s</PREF></MODULE>\n", dir)
	fmt.Fprintf(&c, "<MODULE NAME=\"QTSSMP3StreamingModule\"><PREF NAME=\"mp3_request_logfile_dir\">%s</PREF></MODULE>\n", dir)
	fmt.Fprintf(&c, "<MODULE NAME=\"QTSSAccessModule\"><PREF NAME=\"modAccess_usersfilepath\">%s</PREF>"+
		"<PREF NAME=\"modAccess_groupsfilepath\">%s</PREF></MODULE>\n", filepath.Join(dir, "qtusers"), filepath.Join(dir, "qtgroups"))
	c.WriteString("</CONFIGURATION>\n")
	return c.String()
}

// dssType returns the type Darwin wants a preference to say it has.
func dssType(name, value string) string {
	_, notInt := strconv.Atoi(value)
	_, notFloat := strconv.ParseFloat(value, 64)
	switch {
	case value == "true" || value == "false":
		return "Bool16"
	case notInt == nil && (strings.HasPrefix(name, "maximum_") || strings.HasSuffix(name, "_delay")) && name != "max_retransmit_delay":
		return "SInt32"
	case notInt == nil:
		return "UInt32"
	case notFloat == nil:
		return "Float32"
	}
	return "CharArray"
}
