package header

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParsePrefer(t *testing.T) {
	const none = time.Duration(-1)
	for _, test := range []struct {
		lines []string
		async bool
		wait  time.Duration
		rest  []string
	}{
		{nil, false, none, nil},
		{[]string{""}, false, none, nil},
		{[]string{" \t"}, false, none, nil},
		{[]string{",, ,\t,"}, false, none, nil},

		// One preference.
		{[]string{"respond-async"}, true, none, nil},
		{[]string{"Respond-ASYNC"}, true, none, nil},
		{[]string{" \trespond-async\t "}, true, none, nil},
		{[]string{"wait=10"}, false, 10 * time.Second, nil},
		{[]string{"WAIT=10"}, false, 10 * time.Second, nil},
		{[]string{"wait = 10"}, false, 10 * time.Second, nil},
		{[]string{"wait\t=\t10"}, false, 10 * time.Second, nil},
		{[]string{"wait=0"}, false, 0, nil},
		{[]string{"wait=007"}, false, 7 * time.Second, nil},
		{[]string{`wait="10"`}, false, 10 * time.Second, nil},
		{[]string{"return=minimal"}, false, none, []string{"return=minimal"}},

		// The bound, and numbers that no integer holds.
		{[]string{"wait=59"}, false, MaxWait, nil},
		{[]string{"wait=49"}, false, 49 * time.Second, nil},
		{[]string{"wait=50"}, false, MaxWait, nil},
		{[]string{"wait=51"}, false, MaxWait, nil},
		{[]string{"wait=60"}, false, MaxWait, nil},
		{[]string{"wait=600"}, false, MaxWait, nil},
		{[]string{"wait=9223372036854775808"}, false, MaxWait, nil},
		{[]string{"wait=" + strings.Repeat("9", 10_000)}, false, MaxWait, nil},
		{[]string{"wait=" + strings.Repeat("0", 10_000) + "5"}, false, 5 * time.Second, nil},

		// What is no number of seconds is no wait.
		{[]string{"wait"}, false, none, nil},
		{[]string{"wait="}, false, none, nil},
		{[]string{`wait=""`}, false, none, nil},
		{[]string{`wait="`}, false, none, nil},
		{[]string{`wait="10`}, false, none, nil},
		{[]string{`wait=10"`}, false, none, nil},
		{[]string{"wait=-1"}, false, none, nil},
		{[]string{"wait=+1"}, false, none, nil},
		{[]string{"wait=1.5"}, false, none, nil},
		{[]string{"wait=1e1"}, false, none, nil},
		{[]string{"wait=0x10"}, false, none, nil},
		{[]string{"wait=1_0"}, false, none, nil},
		{[]string{"wait=1 0"}, false, none, nil},
		{[]string{"wait=10s"}, false, none, nil},
		{[]string{"wait=99999999999999999999x"}, false, none, nil},
		{[]string{"wait=\u0661"}, false, none, nil},
		{[]string{"wait==1"}, false, none, nil},

		// An empty value is no value, any other is not understood.
		{[]string{"respond-async="}, true, none, nil},
		{[]string{`respond-async=""`}, true, none, nil},
		{[]string{"respond-async=true"}, false, none, nil},
		{[]string{`respond-async="`}, false, none, nil},

		// Parameters belong to a preference and change nothing.
		{[]string{"respond-async; x=1"}, true, none, nil},
		{[]string{"respond-async;wait=5"}, true, none, nil},
		{[]string{"wait=5;respond-async"}, false, 5 * time.Second, nil},
		{[]string{"wait=5 ; x"}, false, 5 * time.Second, nil},
		{[]string{"wait=5;"}, false, 5 * time.Second, nil},
		{[]string{`wait="5";x="6"`}, false, 5 * time.Second, nil},
		{[]string{"foo; wait=5; respond-async"}, false, none, []string{"foo; wait=5; respond-async"}},
		{[]string{`foo;x="a, wait=5", bar`}, false, none, []string{`foo;x="a, wait=5"`, "bar"}},

		// Several, on one line or on more.
		{[]string{"respond-async, wait=10"}, true, 10 * time.Second, nil},
		{[]string{"respond-async", "wait=10"}, true, 10 * time.Second, nil},
		{[]string{"wait=10,respond-async"}, true, 10 * time.Second, nil},
		{[]string{"a, respond-async, b=1", "", "wait=3, c"}, true, 3 * time.Second, []string{"a", "b=1", "c"}},
		{[]string{"b, a", "b"}, false, none, []string{"b", "a", "b"}},
		{[]string{"respond-asynchronous, respond, async, waiting=5, await=5"}, false, none,
			[]string{"respond-asynchronous", "respond", "async", "waiting=5", "await=5"}},

		// The first instance counts, whatever it is.
		{[]string{"wait=5, wait=10"}, false, 5 * time.Second, nil},
		{[]string{"wait=5", "wait=10"}, false, 5 * time.Second, nil},
		{[]string{"wait=x, wait=10"}, false, none, nil},
		{[]string{"wait=10, wait=x"}, false, 10 * time.Second, nil},
		{[]string{"wait=0, wait=10"}, false, 0, nil},
		{[]string{"respond-async=no, respond-async"}, false, none, nil},
		{[]string{"respond-async, respond-async=no"}, true, none, nil},

		// Quotes.
		{[]string{`foo="a, respond-async, wait=5"`}, false, none, []string{`foo="a, respond-async, wait=5"`}},
		{[]string{`foo="a\", respond-async, b", wait=5`}, false, 5 * time.Second, []string{`foo="a\", respond-async, b"`}},
		{[]string{`foo="a\\", respond-async`}, true, none, []string{`foo="a\\"`}},
		{[]string{`foo="a, respond-async`}, false, none, []string{`foo="a, respond-async`}},
		{[]string{`foo="a\`}, false, none, []string{`foo="a\`}},
		{[]string{`foo=\`, "wait=5"}, false, 5 * time.Second, []string{`foo=\`}},
		{[]string{`foo=\"`, "wait=5"}, false, none, []string{`foo=\",wait=5`}}, // \ escapes only within quotes
		{[]string{`"`}, false, none, []string{`"`}},
		{[]string{`foo="", wait=5`}, false, 5 * time.Second, []string{`foo=""`}},

		// Not preferences at all.
		{[]string{"=5, wait=1"}, false, time.Second, nil},
		{[]string{";, wait=1"}, false, time.Second, nil},
		{[]string{"\x00\xff, wait=1"}, false, time.Second, []string{"\x00\xff"}},
	} {
		t.Run(strings.Join(test.lines, "|")[:min(60, len(strings.Join(test.lines, "|")))], func(t *testing.T) {
			before := slices.Clone(test.lines)
			got := ParsePrefer(test.lines)
			if want := (Prefer{test.async, test.wait, test.rest}); !reflect.DeepEqual(got, want) {
				t.Errorf("%q: %+v, want %+v", test.lines, got, want)
			}
			if !slices.Equal(test.lines, before) {
				t.Errorf("%q was changed to %q", before, test.lines)
			}
		})
	}
}

func TestStrip(t *testing.T) {
	for _, test := range []struct{ lines, want []string }{
		{nil, nil},
		{[]string{"respond-async"}, nil},
		{[]string{""}, nil},
		{[]string{"respond-async, a", "wait=5, b"}, []string{"a", "b"}},
		{[]string{"a"}, []string{"a"}},
	} {
		r := httptest.NewRequest("GET", "/x", nil)
		r.Header["X-Other"] = []string{"kept"}
		if test.lines != nil {
			r.Header["Prefer"] = test.lines
		}
		before := r.Header.Clone()
		stripped := ParsePrefer(r.Header["Prefer"]).Strip(r)
		if got, ok := stripped.Header["Prefer"]; !slices.Equal(got, test.want) || ok != (test.want != nil) {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
		if stripped.Header.Get("X-Other") != "kept" || stripped.URL.Path != "/x" || stripped.Context() != r.Context() {
			t.Errorf("%q: more than Prefer was changed: %+v", test.lines, stripped)
		}
		if test.lines != nil {
			stripped.Header.Set("X-New", "y")
		}
		if !reflect.DeepEqual(r.Header, before) {
			t.Errorf("%q: the original has %v, want %v", test.lines, r.Header, before)
		}
	}
}

func TestParseKey(t *testing.T) {
	for _, test := range []struct {
		lines []string
		key   string
		says  string // of an error
	}{
		{nil, "", ""},
		{[]string{}, "", ""},
		{[]string{"a", "a"}, "", "more than once"},
		{[]string{"a", ""}, "", "more than once"},

		{[]string{"abc"}, "abc", ""},
		{[]string{"  abc\t"}, "abc", ""},
		{[]string{`"abc"`}, "abc", ""},
		{[]string{"\t \"abc\" \t"}, "abc", ""},
		{[]string{`" abc "`}, " abc ", ""},
		{[]string{`" "`}, " ", ""},
		{[]string{`"a\"b\\c"`}, `a"b\c`, ""},
		{[]string{`"\\"`}, `\`, ""},
		{[]string{`"\""`}, `"`, ""},
		{[]string{`"a,b;c=d"`}, "a,b;c=d", ""},
		{[]string{`"abc";p`}, "abc", ""},
		{[]string{`"abc" ; p="q"`}, "abc", ""},
		{[]string{`"abc";`}, "abc", ""},
		{[]string{"8e03978e-40d5-43dd-bc93-6894a57f9324"}, "8e03978e-40d5-43dd-bc93-6894a57f9324", ""},
		{[]string{"a,b"}, "a,b", ""}, // bare ones are taken as they are
		{[]string{`a"b`}, `a"b`, ""},
		{[]string{`a\b`}, `a\b`, ""},
		{[]string{`ab"`}, `ab"`, ""},
		{[]string{"a b~!"}, "a b~!", ""},

		{[]string{""}, "", "has 0 bytes; want 1 to 255"},
		{[]string{" \t "}, "", "has 0 bytes"},
		{[]string{`""`}, "", "has 0 bytes"},
		{[]string{`"";p`}, "", "has 0 bytes"},
		{[]string{strings.Repeat("k", 255)}, strings.Repeat("k", 255), ""},
		{[]string{strings.Repeat("k", 256)}, "", "has 256 bytes"},
		{[]string{`"` + strings.Repeat("k", 255) + `"`}, strings.Repeat("k", 255), ""},
		{[]string{`"` + strings.Repeat("k", 256) + `"`}, "", "has 256 bytes"},
		{[]string{`"` + strings.Repeat(`\"`, 255) + `"`}, strings.Repeat(`"`, 255), ""},
		{[]string{`"` + strings.Repeat(`\"`, 256) + `"`}, "", "has 256 bytes"},

		{[]string{`"`}, "", "no closing quote"},
		{[]string{`"abc`}, "", "no closing quote"},
		{[]string{`"abc\"`}, "", "no closing quote"},
		{[]string{`"abc\`}, "", `has a \ before`},
		{[]string{`"\`}, "", `has a \ before`},
		{[]string{`"a\bc"`}, "", `has a \ before`},
		{[]string{`"abc"d`}, "", "goes on after"},
		{[]string{`"abc" d`}, "", "goes on after"},
		{[]string{`"a", "b"`}, "", "goes on after"},
		{[]string{`"a""b"`}, "", "goes on after"},
		{[]string{"\"abc\"\t;p"}, "", "goes on after"}, // RFC 9651 knows spaces only

		{[]string{"a\tb"}, "", "not printable ASCII"},
		{[]string{"\"a\tb\""}, "", "not printable ASCII"},
		{[]string{"a\x7fb"}, "", "not printable ASCII"},
		{[]string{"a\x1fb"}, "", "not printable ASCII"},
		{[]string{"a\x00b"}, "", "not printable ASCII"},
		{[]string{"schlüssel"}, "", "not printable ASCII"},
		{[]string{"\"\xff\""}, "", "not printable ASCII"},
	} {
		key, err := ParseKey(test.lines)
		switch {
		case key != test.key:
			t.Errorf("%q: %q, want %q", test.lines, key, test.key)
		case err == nil && test.says != "", err != nil && (test.says == "" || !strings.Contains(err.Error(), test.says)):
			t.Errorf("%q: error %v, want %q in it", test.lines, err, test.says)
		}
	}
}

func TestAcceptsEvents(t *testing.T) {
	for _, test := range []struct {
		want  bool
		lines []string
	}{
		{false, nil},
		{false, []string{""}},
		{false, []string{", ,;,"}},
		{true, []string{"text/event-stream"}},
		{true, []string{" \ttext/event-stream\t "}},
		{true, []string{"Text/Event-STREAM"}},
		{true, []string{"text/html, text/event-stream"}},
		{true, []string{"text/event-stream, text/html"}},
		{true, []string{"text/html", "text/event-stream"}},
		{true, []string{",,text/event-stream,"}},
		{true, []string{"text/html;q=0, text/event-stream"}},
		{true, []string{"text/event-stream, text/html;q=0"}},

		// A wildcard, or something alike, asks for no stream.
		{false, []string{"*/*"}},
		{false, []string{"text/*"}},
		{false, []string{"*/*, application/json"}},
		{false, []string{"text/event-streams"}},
		{false, []string{"text/event"}},
		{false, []string{"text / event-stream"}},
		{false, []string{"text/event-stream text/html"}},
		{false, []string{"text/html;x=text/event-stream"}},
		{false, []string{"text/html; text/event-stream"}},
		{false, []string{`text/html;x="a, text/event-stream"`}},
		{false, []string{`text/html;x="a\", text/event-stream"`}},
		{true, []string{`text/html;x="a\\", text/event-stream`}},
		{false, []string{`text/html;x="a, text/event-stream`}},

		// Weights.
		{true, []string{"text/event-stream;q=1"}},
		{true, []string{"text/event-stream;q=1.000"}},
		{true, []string{"text/event-stream;q=0.001"}},
		{true, []string{"text/event-stream;q=0.1"}},
		{true, []string{"text/event-stream ; Q = 0.5"}},
		{false, []string{"text/event-stream;q=0"}},
		{false, []string{"text/event-stream;q=0."}},
		{false, []string{"text/event-stream;q=0.0"}},
		{false, []string{"text/event-stream;q=0.000"}},
		{false, []string{"text/event-stream;Q=0"}},
		{false, []string{"text/event-stream\t;\tq\t=\t0"}},
		{false, []string{"text/event-stream;charset=utf-8;q=0"}},
		{true, []string{"text/event-stream;charset=utf-8;q=0.7"}},
		{true, []string{"text/event-stream;charset=utf-8"}},
		{true, []string{"text/event-stream;"}},
		{true, []string{"text/event-stream;q"}},
		{true, []string{"text/event-stream;qq=0"}},
		{true, []string{`text/event-stream;x=";q=0"`}},
		{false, []string{`text/event-stream;x="\";";q=0`}},
		{false, []string{"text/event-stream;q=0, text/html", "*/*"}},
	} {
		if got := AcceptsEvents(test.lines); got != test.want {
			t.Errorf("%q: %v", test.lines, got)
		}
	}
}

// lines cuts a list at the commas outside of quotes, and says whether the last
// quote is closed. It is written otherwise than split, to find its mistakes.
func lines(list string) (lines []string, closed bool) {
	begin, closed := 0, true
	for _, at := range commaOrQuoted.FindAllStringIndex(list, -1) {
		switch token := list[at[0]:at[1]]; {
		case token == ",":
			lines = append(lines, list[begin:at[0]])
			begin = at[1]
		case !wholeQuoted.MatchString(token):
			closed = false
		}
	}
	return append(lines, list[begin:]), closed
}

var (
	commaOrQuoted = regexp.MustCompile(`(?s)"(?:[^"\\]|\\.)*("|\\?$)|,`)
	wholeQuoted   = regexp.MustCompile(`(?s)^"(?:[^"\\]|\\.)*"$`)
)

func FuzzPrefer(f *testing.F) {
	for _, seed := range []string{
		"", "respond-async", "wait=10", "respond-async, wait=10", "wait=99999999999999999999", "Wait = \"7\"; x",
		`foo="a, respond-async", wait=5`, `foo="a\", wait=1`, `foo="\`, `"`, `a;b="c,d";e, wait=1,,`, "\twait\t=\t1\t",
		"=1", ";wait=1", "wait=1;wait=2, WAIT=3", "respond-async=x, respond-async", "a,b , c\t,", `foo=\"`, "\x00,\xff=\xfe",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		p := ParsePrefer([]string{value})
		if p.Wait != -1 && (p.Wait < 0 || p.Wait > MaxWait || p.Wait%time.Second != 0) {
			t.Errorf("waits %v", p.Wait)
		}
		several, closed := lines(value)
		if got := ParsePrefer(several); !reflect.DeepEqual(got, p) {
			t.Errorf("over %q: %+v, want %+v", several, got, p)
		}
		again := ParsePrefer(p.Rest)
		if again.RespondAsync || again.Wait != -1 || !slices.Equal(again.Rest, p.Rest) {
			t.Errorf("the rest of %+v gives %+v", p, again)
		}

		// What comes first counts, and what is unknown changes nothing.
		if got, want := ParsePrefer([]string{"Wait=7 ,respond-async;x", value}), (Prefer{true, 7 * time.Second, p.Rest}); !reflect.DeepEqual(got, want) {
			t.Errorf("after wait=7: %+v, want %+v", got, want)
		}
		got := ParsePrefer([]string{`unknown="wait=8, \"`, `x";respond-async`, value})
		want := Prefer{p.RespondAsync, p.Wait, append([]string{`unknown="wait=8, \",x";respond-async`}, p.Rest...)}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("after an unknown one: %+v, want %+v", got, want)
		}
		if closed {
			got := ParsePrefer([]string{value, "unknown"})
			if want := (Prefer{p.RespondAsync, p.Wait, append(slices.Clone(p.Rest), "unknown")}); !reflect.DeepEqual(got, want) {
				t.Errorf("before an unknown one: %+v, want %+v", got, want)
			}
		}

		// Every element is in one place: a preference of ours, no preference, or the
		// rest. What begins with a parameter may be taken for either of the last two.
		malformed := func(element string) bool { return strings.HasPrefix(element, ";") }
		var rest []string
		for _, element := range several {
			element = strings.Trim(element, " \t")
			name, _, _ := strings.Cut(element, ";")
			name, _, _ = strings.Cut(name, "=")
			switch strings.ToLower(strings.Trim(name, " \t")) {
			case "", "wait", "respond-async":
			default:
				rest = append(rest, element)
			}
		}
		if got := slices.DeleteFunc(slices.Clone(p.Rest), malformed); !slices.Equal(got, rest) {
			t.Errorf("rest %q, want %q", p.Rest, rest)
		}

		r := &http.Request{Header: http.Header{"Prefer": {value}, "X": {"y"}}}
		before := r.Header.Clone()
		stripped := p.Strip(r)
		delete(before, "Prefer")
		if len(p.Rest) > 0 {
			before["Prefer"] = p.Rest
		}
		if !maps.EqualFunc(stripped.Header, before, slices.Equal) {
			t.Errorf("stripped to %v, want %v", stripped.Header, before)
		}
		if !reflect.DeepEqual(r.Header, http.Header{"Prefer": {value}, "X": {"y"}}) {
			t.Errorf("the original was changed to %v", r.Header)
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, seed := range []string{
		"", "abc", `"abc"`, ` "a\"b\\c" `, `"abc";p=1`, `"abc" ;p`, `"abc`, `"abc\`, `"a\b"`, `"a"b`, `a"b`, `a\b`, "a\tb", "\"a\tb\"",
		"\x7f", "\xff", `""`, `"`, "\t", strings.Repeat("k", 255), strings.Repeat("k", 256), `"` + strings.Repeat(`\\`, 255) + `"`,
	} {
		f.Add(seed)
	}
	quoted := regexp.MustCompile(`(?s)^"((?:[^"\\]|\\["\\])*)" *(?:;.*)?$`)
	escape := strings.NewReplacer(`"`, `\"`, `\`, `\\`)
	unescape := strings.NewReplacer(`\"`, `"`, `\\`, `\`)
	printable := regexp.MustCompile(`^[ -~]{1,255}$`)
	f.Fuzz(func(t *testing.T, value string) {
		key, err := ParseKey([]string{value})

		// What RFC 9651 says, and that a value without quotes is its own key.
		want := strings.Trim(value, " \t")
		if strings.HasPrefix(want, `"`) {
			if m := quoted.FindStringSubmatch(want); m != nil {
				want = unescape.Replace(m[1])
			} else {
				want = ""
			}
		}
		if !printable.MatchString(want) {
			want = ""
		}
		if key != want || (err == nil) != (want != "") {
			t.Errorf("%q, %v; want %q", key, err, want)
		}
		if err == nil {
			if got, err := ParseKey([]string{` "` + escape.Replace(key) + `";p="` + "\t"}); got != key || err != nil {
				t.Errorf("quoted, %q gives %q, %v", key, got, err)
			}
		}
		if _, err := ParseKey([]string{value, value}); err == nil {
			t.Error("two keys are accepted")
		}
	})
}

func FuzzAccept(f *testing.F) {
	for _, seed := range []string{
		"", "*/*", "text/html, */*;q=0.1", `a/b;x="c, text/event-stream"`, `a/b;x="\",`, `a/b;x="\`, ";", ",,", "text/event-stream;q=0",
		"TEXT/EVENT-STREAM ; Q=0.0, a/b", "text/event-stream;q=0.001", "\t a/b\t;q=1\t, text/event-stream", "text/event-stream;x=\";q=0\"",
	} {
		f.Add(seed)
	}
	const events = "text/event-stream"
	upper := func(s string) string { // ASCII only
		b := []byte(s)
		for i, c := range b {
			if 'a' <= c && c <= 'z' {
				b[i] -= 'a' - 'A'
			}
		}
		return string(b)
	}
	f.Fuzz(func(t *testing.T, value string) {
		accepts := AcceptsEvents([]string{value})
		several, closed := lines(value)
		if got := AcceptsEvents(several); got != accepts {
			t.Errorf("over %q: %v, want %v", several, got, accepts)
		}
		if got := AcceptsEvents([]string{upper(value)}); got != accepts {
			t.Errorf("in upper case: %v, want %v", got, accepts)
		}
		if got := AcceptsEvents([]string{" ,\t" + value + " \t"}); got != accepts {
			t.Errorf("with white space: %v, want %v", got, accepts)
		}
		if strings.Contains(upper(value), upper(events)) {
			return
		}
		if accepts {
			t.Error("accepts what is not named")
		}
		for element, want := range map[string]bool{
			events: true, events + ";q=0.001": true, events + " ; x=\"\\\"\" ; Q=1": true,
			events + ";q=0": false, events + " ;\tq=0.000": false, "x" + events: false, "text/*": false,
		} {
			if got := AcceptsEvents([]string{element, value}); got != want {
				t.Errorf("before: %s is %v", element, got)
			}
			if got := AcceptsEvents([]string{value, element}); closed && got != want {
				t.Errorf("behind: %s is %v", element, got)
			}
		}
	})
}
