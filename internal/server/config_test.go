package server

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast"
	"holdfast/internal/budget"
)

// parse is ParseConfig with an environment of its own.
func parse(env map[string]string, args ...string) (Config, string, error) {
	var out strings.Builder
	c, err := ParseConfig(args, func(name string) string { return env[name] }, "v1.2.3", &out)
	return c, out.String(), err
}

// settings has, for each setting, two good values with what they mean, and bad
// values with what their error must say.
func settings() []setting {
	most, conns := connsOf(openFiles(), 0)
	return []setting{
		{"addr", "ADDR", "127.0.0.1:1", "[::1]:2", nil, "",
			func(c Config) any { return c.Addr }, ":8099", "127.0.0.1:1", "[::1]:2"},
		{"workers", "MAX_WORKERS", "0", "1000000", []string{"-1", "1000001", "x", "1.5", "1e3", "0x10", "1_000", " 1", "99999999999999999999"}, "a whole number from 0 to 1000000",
			func(c Config) any { return c.Workers }, 100, 0, 1_000_000},
		{"queue", "MAX_QUEUE", "0", "10000000", []string{"-1", "10000001", "many"}, "a whole number from 0 to 10000000",
			func(c Config) any { return c.Queue }, 200, 0, 10_000_000},
		{"overflow", "OVERFLOW", "reject", "drop-oldest", []string{"drop", "Block", "0", "block "}, "block, reject or drop-oldest",
			func(c Config) any { return c.Overflow }, holdfast.Block, holdfast.Reject, holdfast.DropOldest},
		{"job-timeout", "JOB_TIMEOUT", "1500ms", "1h30m", []string{"-1s", "1", "1d", "soon"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.JobTimeout }, time.Duration(0), 1500 * time.Millisecond, 90 * time.Minute},
		{"patience", "PATIENCE", "0", "1500ms", []string{"-1s", "1", "Auto", "1d"}, "auto, or a duration of 0 or more, such as 500ms",
			func(c Config) any { return (*orAuto)(&c.Patience).String() }, "auto", "0", "1.5s"},
		{"drain", "DRAIN_TIMEOUT", "0", "1ns", []string{"-1ns", "30", "∞"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.Drain }, 30 * time.Second, time.Duration(0), time.Nanosecond},
		{"linger", "LINGER", "0", "1m", []string{"-1s", "1", "never"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.Linger }, time.Second, time.Duration(0), time.Minute},
		{"max-body", "MAX_BODY", "1", "64KiB", []string{"0", "-1", "0KiB", "1kb", "1MB", "1.5MiB", "MiB", "1 MiB", "8589934592GiB", "9223372036854775808"}, "a size of at least 1 byte, such as 65536, 64KiB",
			func(c Config) any { return c.MaxBody }, int64(1 << 20), int64(1), int64(64 << 10)},
		{"max-conns", "MAX_CONNS", "1", fmt.Sprint(most), []string{"0", "-1", fmt.Sprint(most + 1), "all"}, fmt.Sprintf("a whole number from 1 to %d", most),
			func(c Config) any { return c.MaxConns }, conns, 1, most},
		{"max-workers", "MAX_RESIZE", "1", "1000000", []string{"0", "-1", "1000001", "none"}, "a whole number from 1 to 1000000",
			func(c Config) any { return c.MaxWorkers }, 10_000, 1, 1_000_000},
		{"max-response", "MAX_RESPONSE", "1", "64KiB", []string{"0", "-1", "8MB"}, "a size of at least 1 byte, such as 65536, 64KiB",
			func(c Config) any { return c.MaxResponse }, int64(8 << 20), int64(1), int64(64 << 10)},
		{"retain", "RETAIN", "1ns", "24h", []string{"0", "0s", "-1h", "1", "1d", "forever"}, "a duration above 0, such as 500ms",
			func(c Config) any { return c.Retain }, time.Hour, time.Nanosecond, 24 * time.Hour},
		{"retain-jobs", "RETAIN_JOBS", "1", "10000000", []string{"0", "-1", "10000001", "all"}, "a whole number from 1 to 10000000",
			func(c Config) any { return c.RetainJobs }, 100_000, 1, 10_000_000},
		{"retain-bytes", "RETAIN_BYTES", "1GiB", "65536", []string{"0", "-1", "256MB", "65535", "1"}, "a size of at least 64KiB, such as 1MiB",
			func(c Config) any { return c.RetainBytes }, int64(256 << 20), int64(1 << 30), int64(64 << 10)},
		{"max-memory", "MAX_MEMORY", "1GiB", "1048576", []string{"0", "-1", "half", "1MB", "1048575", "50%"}, "a size of at least 1MiB, such as 1MiB",
			func(c Config) any { return c.MaxMemory }, budget.Default() >> 20 << 20, int64(1 << 30), int64(1 << 20)},
		{"upstream", "UPSTREAM", "http://127.0.0.1:1", "https://example.com:2/base/", []string{"127.0.0.1:1", "localhost", "/path", "ftp://h", "http://", "http://:80", "http://u:p@h", "http://h?q", "http://h#f", "http://h:x", "http://h/%zz"}, "http://host:port or https://host:port",
			func(c Config) any { return upstream{&c.Upstream}.String() }, "", "http://127.0.0.1:1", "https://example.com:2/base/"},
		{"public-url", "PUBLIC_URL", "https://host/queue/", "http://h:1", []string{"/queue", "host", "ftp://h", "http://", "https://u@h", "https://h?q", "https://h#f"}, "http://host or https://host",
			func(c Config) any { return c.PublicURL }, "", "https://host/queue", "http://h:1"},
		{"cors-origins", "CORS_ORIGINS", "https://app.example", "http://localhost:3000, https://App.example:443", []string{"*", "null", "app.example", "https://app.example/", "https://*.example", "https://a.example,,https://b.example", ",", "https://u@h", "ftp://h", "https://ä.example", "https://h https://i"}, "origins such as https://app.example",
			func(c Config) any { return c.CORSOrigins }, "", "https://app.example", "http://localhost:3000,https://app.example"},
		{"upstream-timeout", "UPSTREAM_TIMEOUT", "0", "90s", []string{"-1s", "5", "none"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.UpstreamTimeout }, 5 * time.Minute, time.Duration(0), 90 * time.Second},
		{"upstream-idle", "UPSTREAM_IDLE", "0", "1500ms", []string{"-1s", "4", "ever"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.UpstreamIdle }, 4 * time.Second, time.Duration(0), 1500 * time.Millisecond},
		{"abandon", "ABANDON", "true", "false", []string{"1", "yes", "True"}, "true or false",
			func(c Config) any { return c.Abandon }, false, true, false},
		{"trusted-proxies", "TRUSTED_PROXIES", "10.0.0.0/8", "192.0.2.1, fd00::/8", []string{"10.0.0.1/8", "10.0.0.0/33", "localhost", "10.0.0.0/8,", ",", "::1%eth0", "1.2.3.4:80", "10.0.0.0/8;::1"}, "networks or addresses with commas between them",
			func(c Config) any { return fmt.Sprint(c.Proxies()) }, "[]", "[10.0.0.0/8]", "[192.0.2.1/32 fd00::/8]"},
		{"trust-priority", "TRUST_PRIORITY", "true", "false", []string{"1", "yes", "True"}, "true or false",
			func(c Config) any { return c.TrustPriority }, false, true, false},
		{"client-key", "CLIENT_KEY", "address", "X-Api-Key", []string{"host", "a b", "X-Api-Key:", "ä", strings.Repeat("x", 65)}, "the name of a header, such as X-Api-Key, or address",
			func(c Config) any { return c.ClientKey }, "", "address", "X-Api-Key"},
		{"client-places", "CLIENT_PLACES", "1", "11000000", []string{"-1", "11000001", "all"}, "a whole number from 0 to 11000000",
			func(c Config) any { return c.ClientPlaces }, 0, 1, 11_000_000},
		{"admin", "ADMIN_ADDR", "127.0.0.1:1", "[::1]:2", nil, "",
			func(c Config) any { return c.Admin }, "127.0.0.1:8100", "127.0.0.1:1", "[::1]:2"},
		{"attempts", "ATTEMPTS", "1", "1000", []string{"0", "1001", "-1", "x"}, "a whole number from 1 to 1000",
			func(c Config) any { return c.Jobs().Retry.Attempts }, 3, 1, 1000},
		{"retry-on", "RETRY_ON", "503", "connect, 429,599", []string{"399", "600", "5xx", "503,", ",", "Connect", "503;429"}, "statuses from 400 to 599, and connect",
			func(c Config) any { return fmt.Sprint(c.Jobs().Retry.On, c.RetryUnreached()) }, "[] false", "[503] false", "[429 599] true"},
		{"max-delay", "MAX_DELAY", "0", "36h", []string{"-1s", "1", "1d"}, "a duration of 0 or more",
			func(c Config) any { return c.Jobs().MaxDelay }, 24 * time.Hour, time.Duration(-1), 36 * time.Hour},
		{"max-delayed", "MAX_DELAYED", "1", "10000000", []string{"0", "10000001", "x"}, "a whole number from 1 to 10000000",
			func(c Config) any { return c.Jobs().MaxDelayed }, 10_000, 1, 10_000_000},
		{"log-jobs", "LOG_JOBS", "true", "false", []string{"1", "yes", "True"}, "true or false",
			func(c Config) any { return c.LogJobs }, false, true, false},
	}
}

type setting struct {
	flag, env         string
	first, second     string
	bad               []string
	allowed           string
	get               func(Config) any
	byDefault         any
	isFirst, isSecond any
}

func TestConfigPrecedence(t *testing.T) {
	for _, s := range settings() {
		for _, test := range []struct {
			what, env string
			args      []string
			want      any
		}{
			{"nothing", "", nil, s.byDefault}, // an empty variable is an unset one
			{"variable", s.first, nil, s.isFirst},
			{"variable", s.second, nil, s.isSecond},
			{"flag", "", []string{"-" + s.flag + "=" + s.first}, s.isFirst},
			{"flag", "", []string{"--" + s.flag + "=" + s.second}, s.isSecond},
			{"flag before variable", s.first, []string{"-" + s.flag + "=" + s.second}, s.isSecond},
			{"flag before variable", s.second, []string{"-" + s.flag + "=" + s.first}, s.isFirst},
			{"the last flag", "", []string{"-" + s.flag + "=" + s.first, "-" + s.flag + "=" + s.second}, s.isSecond},
		} {
			c, out, err := parse(map[string]string{s.env: test.env}, test.args...)
			if err != nil || out != "" || s.get(c) != test.want {
				t.Errorf("%s, %s %q, %q: %v, %v, printed %q; want %v", test.what, s.env, test.env, test.args, s.get(c), err, out, test.want)
			}
		}
	}

	// A flag that was given the default's value was given nevertheless.
	if c, _, err := parse(map[string]string{"MAX_WORKERS": "7"}, "-workers", "100"); err != nil || c.Workers != 100 {
		t.Errorf("%d workers, %v; want 100 from the flag", c.Workers, err)
	}
	if c, _, err := parse(nil, "-log-jobs"); err != nil || !c.LogJobs {
		t.Errorf("-log-jobs alone: %v, %v; want it set", c.LogJobs, err)
	}
	// All at once, each into a field of its own.
	env, args := map[string]string{}, []string{}
	all := slices.DeleteFunc(settings(), func(s setting) bool { return s.flag == "upstream" }) // for which there would be too few descriptors
	for _, s := range all {
		env[s.env] = s.first
		args = append(args, "-"+s.flag+"="+s.second)
	}
	fromEnv, _, err1 := parse(env)
	fromArgs, _, err2 := parse(env, args...)
	for _, s := range all {
		if s.get(fromEnv) != s.isFirst || s.get(fromArgs) != s.isSecond || err1 != nil || err2 != nil {
			t.Errorf("%s: %v and %v, want %v and %v (%v, %v)", s.flag, s.get(fromEnv), s.get(fromArgs), s.isFirst, s.isSecond, err1, err2)
		}
	}
}

func TestConfigBadValues(t *testing.T) {
	for _, s := range settings() {
		for _, bad := range s.bad {
			for name, err := range map[string]error{
				"-" + s.flag: func() error { _, _, err := parse(nil, "-"+s.flag+"="+bad); return err }(),
				s.env:        func() error { _, _, err := parse(map[string]string{s.env: bad}); return err }(),
			} {
				if err == nil {
					t.Errorf("%s=%q is accepted", name, bad)
					continue
				}
				for _, want := range []string{name, fmt.Sprintf("%q", bad), "want " + s.allowed} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%s=%q: %q does not say %q", name, bad, err, want)
					}
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("%s=%q: %q is more than one line", name, bad, err)
				}
			}
		}
		// A bad variable does not matter where the flag is given.
		if len(s.bad) > 0 {
			c, _, err := parse(map[string]string{s.env: s.bad[0]}, "-"+s.flag+"="+s.first)
			if err != nil || s.get(c) != s.isFirst {
				t.Errorf("%s given and %s bad: %v, %v; want %v", s.flag, s.env, s.get(c), err, s.isFirst)
			}
		}
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"8099"}, `argument "8099"; want flags only`},
		{[]string{"-workers", "5", "serve", "-queue", "3"}, `argument "serve"; want flags only`},
		{[]string{"-log-jobs", "true"}, `argument "true"; want flags only`},
		{[]string{"-port", "1"}, "-port"},
		{[]string{"-workers"}, "-workers"},
		{[]string{"-workers="}, "want a whole number"}, // an empty flag is a bad one
		{[]string{"-version", "-workers=x"}, "want a whole number"},
	} {
		if _, out, err := parse(nil, test.args...); err == nil || !strings.Contains(err.Error(), test.want) || out != "" {
			t.Errorf("%q: %v, printed %q; want an error with %q", test.args, err, out, test.want)
		}
	}
}

func TestConfigHelp(t *testing.T) {
	for _, arg := range []string{"-h", "-help", "--help"} {
		_, out, err := parse(map[string]string{"MAX_WORKERS": "bad"}, arg)
		if !errors.Is(err, flag.ErrHelp) {
			t.Fatalf("%s: %v, want flag.ErrHelp", arg, err)
		}
		if !strings.Contains(out, "v1.2.3") {
			t.Errorf("%s does not tell the version", arg)
		}
		lines := strings.Split(out, "\n")
		for _, s := range settings() {
			byDefault := fmt.Sprint(s.byDefault)
			if said, ok := map[string]string{
				"job-timeout": "0", "max-body": "1MiB", "max-response": "8MiB", "retain": "1h", "retain-bytes": "256MiB", "max-memory": mebibytes(budget.Default()), "upstream": "none", "public-url": "none", "cors-origins": "none",
				"upstream-timeout": "5m", "upstream-idle": "4s", "trusted-proxies": "none", "client-key": "none", "retry-on": "none", "max-delay": "24h",
			}[s.flag]; ok {
				byDefault = said
			}
			n := 0
			for _, line := range lines {
				if strings.HasPrefix(line, "  -"+s.flag+" ") {
					n++
					if want := "(" + s.env + "; default " + byDefault + ")"; !strings.HasSuffix(line, want) {
						t.Errorf("%q does not end in %q", line, want)
					}
				}
			}
			if n != 1 {
				t.Errorf("%s has %d lines for -%s, want 1", arg, n, s.flag)
			}
		}
	}
}

func TestConfigVersion(t *testing.T) {
	c, out, err := parse(nil, "-version", "-workers", "5")
	if c != (Config{}) || out != "holdfast v1.2.3\n" || err != nil {
		t.Errorf("%+v, %q, %v; want the zero Config and the version", c, out, err)
	}
}

func TestConfigDispatcher(t *testing.T) {
	got := Config{Overflow: holdfast.DropOldest, JobTimeout: time.Minute}.Dispatcher()
	want := holdfast.Config{Overflow: holdfast.DropOldest, JobTimeout: time.Minute}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	got = Config{Workers: 1, Queue: 2}.Dispatcher()
	if want = (holdfast.Config{Workers: 1, Queue: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	// The bounds of the command line are the engine's.
	_, workers := holdfast.New(holdfast.Config{Workers: 1_000_001})
	_, queue := holdfast.New(holdfast.Config{Queue: 10_000_001})
	if workers == nil || !strings.Contains(workers.Error(), "to 1000000") || queue == nil || !strings.Contains(queue.Error(), "to 10000000") {
		t.Errorf("the dispatcher has other bounds: %v; %v", workers, queue)
	}
}

// What can be reached from elsewhere needs a token.
func TestConfigAdmin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) string {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for addr, open := range map[string]bool{
		"127.0.0.1:1": false, "127.1.2.3:1": false, "localhost:1": false, "[::1]:1": false, "[::ffff:127.0.0.1]:1": false, "": false,
		":1": true, "0.0.0.0:1": true, "[::]:1": true, "192.0.2.1:1": true, "host.example:1": true, "localhost.example:1": true,
	} {
		_, _, err := parse(nil, "-admin", addr)
		if (err != nil) != open || open && (!strings.Contains(err.Error(), "-admin "+addr) || !strings.Contains(err.Error(), "want -admin-token-file")) {
			t.Errorf("-admin %q without a token: %v", addr, err)
		}
		c, _, err := parse(nil, "-admin", addr, "-admin-token-file", write(" 0123456789abcdef\n"))
		if err != nil || c.AdminToken != "0123456789abcdef" || !c.AdminSet {
			t.Errorf("-admin %q with a token: %+v, %v", addr, c, err)
		}
	}
	for text, says := range map[string]string{
		"":                        "0 bytes; want one token of 16 to 4096",
		"0123456789abcde\n":       "16 bytes; want one token of 16",
		strings.Repeat("x", 4097): "4097 bytes; want one token",
		"0123456789 abcdef":       "without a space",
		"0123456789\nabcdef":      "without a space",
		"0123456789äabcdef":       "letters, digits or signs",
	} {
		if _, _, err := parse(map[string]string{"ADMIN_TOKEN_FILE": write(text)}); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "ADMIN_TOKEN_FILE") {
			t.Errorf("a token file with %.20q: %v", text, err)
		}
	}
	if _, _, err := parse(nil, "-admin-token-file", file+".not"); err == nil || !strings.Contains(err.Error(), "-admin-token-file") {
		t.Errorf("no file: %v", err)
	}
	for _, addr := range []string{"8100", "127.0.0.1", "::1"} {
		if _, _, err := parse(nil, "-admin", addr, "-admin-token-file", write("0123456789abcdef")); err == nil || !strings.Contains(err.Error(), "want host:port") {
			t.Errorf("-admin %q: %v", addr, err)
		}
	}
	if c, _, err := parse(map[string]string{"ADMIN_ADDR": "127.0.0.1:8100"}); err != nil || !c.AdminSet {
		t.Errorf("the default's value, given: %v, %v; want it to count as set", c.AdminSet, err)
	}
	if c, _, err := parse(nil); err != nil || c.AdminSet {
		t.Errorf("nothing given: %v, %v", c.AdminSet, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"1": 1, "1023": 1023, "1KiB": 1 << 10, "3KiB": 3 << 10, "1MiB": 1 << 20, "1GiB": 1 << 30, "1024GiB": 1 << 40,
		"9223372036854775807": math.MaxInt64, "8589934591GiB": (1<<33 - 1) << 30,
	} {
		var v Size
		if err := v.Set(text); err != nil || v != want {
			t.Errorf("Set(%q): %d, %v; want %d", text, v, err, want)
		}
		if got := want.String(); got != text {
			t.Errorf("String of %d: %q, want %q", want, got, text)
		}
	}
	for text, want := range map[string]Size{"1024": 1 << 10, "1024KiB": 1 << 20, "0064KiB": 64 << 10} {
		var v Size
		if err := v.Set(text); err != nil || v != want {
			t.Errorf("Set(%q): %d, %v; want %d", text, v, err, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, seed := range []string{
		"", "0", "1", "-1", "+1", "1024", "1KiB", "64KiB", "1MiB", "3GiB", "1023GiB", "KiB", "1kib", "1 KiB", "1.5KiB", "1e3", "0x10", "1_0",
		"1KiBKiB", "00012MiB", "9223372036854775807", "9223372036854775808", "18446744073709551616", "8589934591GiB", "8589934592GiB", "9007199254740991KiB", "9007199254740992KiB", "١",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		const before = Size(12345)
		v := before
		if err := v.Set(text); err != nil {
			if v != before {
				t.Errorf("Set(%q) is an error and changes the size to %d", text, v)
			}
			return
		}
		if v < 1 {
			t.Errorf("Set(%q) = %d", text, v)
		}
		var again Size
		if err := again.Set(v.String()); err != nil || again != v {
			t.Errorf("%q is %d, its text %q is %d, %v", text, v, v.String(), again, err)
		}
	})
}

func TestConnsOf(t *testing.T) {
	for _, test := range []struct {
		files, upstream int
		most, byDefault int
	}{
		{0, 0, 1, 1}, {48, 0, 1, 1}, {49, 0, 1, 1}, {64, 0, 16, 14}, {1024, 0, 860, 753}, {1024, 400, 460, 403},
		{20000, 0, 18940, 16573}, {1 << 20, 0, 1<<20 - 1060, 916577},
	} {
		if most, byDefault := connsOf(test.files, test.upstream); most != test.most || byDefault != test.byDefault {
			t.Errorf("connsOf(%d, %d) = %d, %d; want %d, %d", test.files, test.upstream, most, byDefault, test.most, test.byDefault)
		}
		if test.files >= 49 && test.most+test.upstream+ownOf(test.files) > test.files {
			t.Errorf("%d files: the sum of what is open is more", test.files)
		}
	}
}

// The sum of what may be open is within the limit of open files, or the error says
// what it would be.
func TestConfigFits(t *testing.T) {
	upstream := &url.URL{Scheme: "http", Host: "localhost:1"}
	for _, test := range []struct {
		c    Config
		says []string
	}{
		{Config{Files: 64, MaxConns: 16, Workers: 1_000_000}, nil},
		{Config{Files: 64, MaxConns: 17}, []string{"17 connections (-max-conns)", "48 files", "are 65", "limit of open files is 64"}},
		{Config{Files: 32, MaxConns: 1}, []string{"limit of open files is 32", "at least 49"}},
		{Config{Files: 1024, MaxConns: 460, Workers: 400, Upstream: upstream}, nil},
		{Config{Files: 1024, MaxConns: 460, Workers: 401, Upstream: upstream}, []string{"460 connections", "401 workers", "164 files", "are 1025", "is 1024"}},
		{Config{Files: 1024, MaxConns: 1, Workers: 2000, Upstream: upstream}, []string{"2000 workers"}},
	} {
		err := test.c.fit(test.c.Workers)
		if (err != nil) != (test.says != nil) {
			t.Errorf("%+v: %v", test.c, err)
		}
		for _, want := range test.says {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q in it", err, want)
			}
		}
	}
	if c, _, err := parse(nil, "-upstream", "http://h", "-workers", "20"); err != nil || c.MaxConns+20 > c.Files-ownOf(c.Files) || c.UpstreamFiles() < 20 {
		t.Errorf("the default of -max-conns leaves no room for 20 workers: %d of %d files, %v", c.MaxConns, c.Files, err)
	}
	if _, _, err := parse(nil, "-upstream", "http://h", "-workers", "1000000", "-max-conns", "100"); openFiles() < 1_000_000 && (err == nil || !strings.Contains(err.Error(), "1000000 workers")) {
		t.Errorf("a million connections to the upstream: %v", err)
	}
}

func TestConfigResizable(t *testing.T) {
	upstream := &url.URL{Scheme: "http", Host: "localhost:1"}
	for _, test := range []struct {
		c       Config
		workers int
		says    string
	}{
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 1}, 50, ""},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 1}, 0, ""},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 1}, 51, "workers is 51; want 0 (paused) to 50, which -max-workers sets"},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 1}, -1, "workers is -1; want 0 (paused) to 50"},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 70}, 70, ""}, // after a pause
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 50, Workers: 70}, 71, "to 70"},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 10_000, Upstream: upstream}, 760, ""},
		{Config{Files: 1024, MaxConns: 100, MaxWorkers: 10_000, Upstream: upstream}, 761, "are 1025; the limit of open files is 1024; want at most 760 workers"},
	} {
		err := test.c.Resizable(test.workers)
		if (err != nil) != (test.says != "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%d workers with %+v: %v, want %q", test.workers, test.c, err, test.says)
		}
	}
}

// The flags of a command whose jobs outlive the process are there alone, and follow the
// same rules.
func TestDurableConfig(t *testing.T) {
	parse := func(env map[string]string, args ...string) (Config, error) {
		return ParseDurableConfig(args, func(name string) string { return env[name] }, "", &strings.Builder{})
	}
	c, err := parse(nil)
	if err != nil || c.Data != "data" || !c.Sync || c.Attempts != 3 || c.Workers != 100 {
		t.Errorf("the defaults are %q, %v, %d, %d workers, %v", c.Data, c.Sync, c.Attempts, c.Workers, err)
	}
	c, err = parse(map[string]string{"DATA": "/env", "ATTEMPTS": "5"}, "-data", "/flag", "-sync=false")
	if err != nil || c.Data != "/flag" || c.Sync || c.Attempts != 5 {
		t.Errorf("set are %q, %v, %d, %v", c.Data, c.Sync, c.Attempts, err)
	}
	for _, args := range [][]string{{"-attempts", "0"}, {"-attempts", "1001"}, {"-sync", "-sync=maybe"}, {"-data", ""}} {
		if _, err := parse(nil, args...); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	if _, err := ParseConfig([]string{"-data", "x"}, func(string) string { return "" }, "", &strings.Builder{}); err == nil {
		t.Error("the server in memory takes -data")
	}
}

// A node of a cluster needs some flags, and others do not go together. The error says which.
func TestClusterConfig(t *testing.T) {
	parse := func(env map[string]string, args ...string) (Config, error) {
		return ParseDurableConfig(args, func(name string) string { return env[name] }, "", &strings.Builder{})
	}
	base := []string{"-cluster", "c", "-node", "n", "-node-addr", "h:1", "-cluster-secret-file", "f"}
	own := append(slices.Clone(base), "-cluster-addr", "h:2")
	c, err := parse(map[string]string{"PEERS": "h:2,i:2"}, own...)
	if err != nil || c.Cluster != "c" || c.Node != "n" || c.NodeAddr != "h:1" || c.ClusterAddr != "h:2" || c.Peers != "h:2,i:2" || c.SecretFile != "f" {
		t.Errorf("a node is %+v, %v", c, err)
	}
	if c, err := parse(nil, append(slices.Clone(base), "-nats", "nats://h")...); err != nil || c.NATS != "nats://h" {
		t.Errorf("a node at NATS servers is %+v, %v", c, err)
	}
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"-node", "n"}, "-node"},
		{[]string{"-peers", "h:2"}, "without -cluster"},
		{base, "without -cluster-addr"},
		{own, "without -peers"},
		{base[:4], "without -node-addr"},
		{append(slices.Clone(own), "-peers", "i:2", "-nats", "nats://h"), "not both"},
		{append(slices.Clone(own), "-peers", "i:2", "-nats-creds", "f"), "without -nats;"},
	} {
		if _, err := parse(nil, test.args...); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: %v, want %q", test.args, err, test.says)
		}
	}
}
