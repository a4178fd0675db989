package server

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
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
	most, conns := maxConns()
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
		{"drain", "DRAIN_TIMEOUT", "0", "1ns", []string{"-1ns", "30", "∞"}, "a duration of 0 or more, such as 500ms",
			func(c Config) any { return c.Drain }, 30 * time.Second, time.Duration(0), time.Nanosecond},
		{"max-body", "MAX_BODY", "1", "64KiB", []string{"0", "-1", "0KiB", "1kb", "1MB", "1.5MiB", "MiB", "1 MiB", "8589934592GiB", "9223372036854775808"}, "a size of at least 1 byte, such as 65536, 64KiB",
			func(c Config) any { return c.MaxBody }, int64(1 << 20), int64(1), int64(64 << 10)},
		{"max-conns", "MAX_CONNS", "1", fmt.Sprint(most), []string{"0", "-1", fmt.Sprint(most + 1), "all"}, fmt.Sprintf("a whole number from 1 to %d", most),
			func(c Config) any { return c.MaxConns }, conns, 1, most},
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
		{"admin", "ADMIN_ADDR", "127.0.0.1:1", "[::1]:2", nil, "",
			func(c Config) any { return c.Admin }, "127.0.0.1:8100", "127.0.0.1:1", "[::1]:2"},
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
	for _, s := range settings() {
		env[s.env] = s.first
		args = append(args, "-"+s.flag+"="+s.second)
	}
	fromEnv, _, err1 := parse(env)
	fromArgs, _, err2 := parse(env, args...)
	for _, s := range settings() {
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

func TestConnsFor(t *testing.T) {
	for _, test := range []struct {
		files           uint64
		most, byDefault int
	}{
		{0, 1, 1}, {48, 1, 1}, {49, 1, 1}, {64, 16, 14}, {1024, 976, 854}, {20000, 19952, 17458},
		{1 << 20, 1<<20 - 48, 917462}, {math.MaxUint64, 1<<20 - 48, 917462},
	} {
		if most, byDefault := connsFor(test.files); most != test.most || byDefault != test.byDefault {
			t.Errorf("connsFor(%d) = %d, %d; want %d, %d", test.files, most, byDefault, test.most, test.byDefault)
		}
	}
}
