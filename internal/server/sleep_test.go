package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"holdfast/internal/problem"
)

func recorded(rec *httptest.ResponseRecorder) answer {
	return answer{status: rec.Code, header: rec.Header(), body: rec.Body.String()}
}

// post asks a handler, and returns what it got and, if the request was let in, what
// would sleep.
func post(maxBody int64, body string, header ...string) (a answer, reached bool, seconds int64) {
	h := Sleep(maxBody, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reached, seconds = true, r.Context().Value(sleepKey{}).(int64)
			fmt.Fprint(w, seconds)
		})
	})
	req := httptest.NewRequest("POST", "/bbb", strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return recorded(rec), reached, seconds
}

func TestBadBodies(t *testing.T) {
	const want = `want {"sleep_time": n}, n a whole number of seconds from 0 to 86400`
	for _, test := range []struct{ name, body, says string }{
		{"empty", "", "the body is empty"},
		{"blank", " \t\r\n", "the body is empty"},
		{"no JSON", "sleep_time=1", "not JSON"},
		{"cut off", `{"sleep_time":1`, "not JSON"},
		{"cut off after the name", `{"sleep_time"`, "not JSON"},
		{"no colon", `{"sleep_time" 1}`, "not JSON"},
		{"no quotes", `{sleep_time:1}`, "not JSON"},
		{"single quotes", `{'sleep_time':1}`, "not JSON"},
		{"comma at the end", `{"sleep_time":1,}`, "not JSON"},
		{"comma at the start", `{,"sleep_time":1}`, "not JSON"},
		{"wrong bracket", `{"sleep_time":1]`, "not JSON"},
		{"leading zero", `{"sleep_time":01}`, "not JSON"},
		{"plus", `{"sleep_time":+1}`, "not JSON"},
		{"hexadecimal", `{"sleep_time":0x1}`, "not JSON"},
		{"NaN", `{"sleep_time":NaN}`, "not JSON"},
		{"byte order mark", "\ufeff" + `{"sleep_time":1}`, "not JSON"},
		{"UTF-16", "{\x00\"\x00s\x00", "not JSON"},
		{"empty object", `{}`, "sleep_time is missing"},
		{"array", `[{"sleep_time":1}]`, "not a JSON object"},
		{"number", `1`, "not a JSON object"},
		{"string", `"sleep_time"`, "not a JSON object"},
		{"null body", `null`, "not a JSON object"},
		{"unknown field", `{"sleep_time":1,"priority":2}`, `"priority" is not known`},
		{"only an unknown field", `{"sleep":1}`, `"sleep" is not known`},
		{"empty name", `{"":1}`, `"" is not known`},
		{"other capitalisation", `{"Sleep_Time":1}`, `"Sleep_Time" is not known`},
		{"capitals", `{"SLEEP_TIME":1}`, `"SLEEP_TIME" is not known`},
		{"folded by Unicode", `{"ſleep_time":1}`, `"ſleep_time" is not known`},
		{"long unknown name", `{"` + strings.Repeat("x", 500) + `":1}`, `"` + strings.Repeat("x", 40) + `" is not known`},
		{"invalid UTF-8 in the name", "{\"sleep_time\xff\":1}", "is not known"},
		{"duplicate", `{"sleep_time":1,"sleep_time":2}`, "given twice"},
		{"duplicate, the same", `{"sleep_time":1,"sleep_time":1}`, "given twice"},
		{"trailing object", `{"sleep_time":1}{"sleep_time":2}`, "something follows"},
		{"trailing bracket", `{"sleep_time":1}}`, "something follows"},
		{"trailing word", `{"sleep_time":1} x`, "something follows"},
		{"trailing NUL", `{"sleep_time":1}` + "\x00", "something follows"},
		{"null value", `{"sleep_time":null}`, "sleep_time cannot be null"},
		{"string value", `{"sleep_time":"1"}`, `sleep_time cannot be "1"`},
		{"true", `{"sleep_time":true}`, "sleep_time cannot be true"},
		{"nested object", `{"sleep_time":{"sleep_time":1}}`, "sleep_time cannot be {"},
		{"nested array", `{"sleep_time":[1]}`, "sleep_time cannot be ["},
		{"deep", `{"sleep_time":` + strings.Repeat("[", 100_000), "not JSON"},
		{"float", `{"sleep_time":1.5}`, "sleep_time cannot be 1.5;"},
		{"whole float", `{"sleep_time":1.0}`, "sleep_time cannot be 1.0;"},
		{"exponent", `{"sleep_time":1e1}`, "sleep_time cannot be 1e1;"},
		{"negative", `{"sleep_time":-1}`, "sleep_time is -1;"},
		{"over the limit", `{"sleep_time":86401}`, "sleep_time is 86401;"},
		{"beyond int64", `{"sleep_time":9223372036854775808}`, "sleep_time cannot be 9223372036854775808;"},
		{"wraps to 1", `{"sleep_time":18446744073709551617}`, "sleep_time cannot be 18446744073709551617;"},
		{"huge", `{"sleep_time":` + strings.Repeat("9", 500) + `}`, "sleep_time cannot be " + strings.Repeat("9", 40) + ";"},
		{"form", "%7B%22sleep_time%22%3A1%7D", "not JSON"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, reached, _ := post(1<<20, test.body)
			a.check(t, 400)
			var p struct{ Detail string }
			json.Unmarshal([]byte(a.body), &p)
			if !strings.Contains(p.Detail, test.says) || !strings.HasSuffix(p.Detail, want) || len(p.Detail) > 250 {
				t.Errorf("says %q, want %q and %q", p.Detail, test.says, want)
			}
			if reached {
				t.Error("the handler was reached")
			}
		})
	}
}

func TestGoodBodies(t *testing.T) {
	for _, test := range []struct {
		body string
		want int64
	}{
		{`{"sleep_time":0}`, 0},
		{`{"sleep_time":1}`, 1},
		{`{"sleep_time": 86400}`, maxSleep},
		{"\r\n { \t\"sleep_time\"\n:\n7 } \n", 7},
		{`{"sleep\u005ftime":7}`, 7}, // the same name
		{`{"sleep_time":-0}`, 0},
	} {
		for _, kind := range []string{"", "application/json", "application/x-www-form-urlencoded", "text/plain; charset=latin1", "multipart/form-data", "application/xml", "no/such\x7ftype"} {
			a, reached, seconds := post(1<<20, test.body, "Content-Type", kind)
			if a.status != 200 || !reached || a.body != strconv.FormatInt(test.want, 10) {
				t.Errorf("%s as %q: %d %s, want %d", test.body, kind, a.status, a.body, test.want)
			}
			if seconds != test.want {
				t.Errorf("%s would sleep for %d s, want %d", test.body, seconds, test.want)
			}
		}
	}
}

func TestBodyLimit(t *testing.T) {
	for size, status := range map[int]int{99: 200, 100: 200, 101: 413, 100_000: 413} {
		body := strings.Repeat(" ", size-16) + sleepFor(7)
		a, reached, _ := post(100, body)
		a.check(t, status)
		if reached != (status == 200) {
			t.Errorf("%d bytes: handler reached: %v", size, reached)
		}
		if status == 413 && !strings.Contains(a.body, "want at most 100 bytes") {
			t.Errorf("%s does not tell the limit", a.body)
		}
	}
	// Of a body that breaks off nothing is done.
	h := Sleep(100, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it would sleep") })
	})
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("POST", "/bbb", io.MultiReader(strings.NewReader(sleepFor(0)), iotest.ErrReader(io.ErrUnexpectedEOF))))
	recorded(rec).check(t, 400)
}

func TestSleepRoutes(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /aaa", Sleep(1<<20, func(h http.Handler) http.Handler { return h }))
	h := problem.Mux(mux)
	for _, test := range []struct {
		method, target string
		status         int
	}{
		{"POST", "/aaa", 200},
		{"POST", "/aaa?x=y", 200},
		{"GET", "/aaa", 405}, {"HEAD", "/aaa", 405}, {"PUT", "/aaa", 405}, {"PATCH", "/aaa", 405}, {"DELETE", "/aaa", 405}, {"OPTIONS", "/aaa", 405},
		{"POST", "/AAA", 404}, {"POST", "/aaa/", 404}, {"POST", "/aaa/1", 404}, {"POST", "/", 404}, {"GET", "/favicon.ico", 404},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(test.method, test.target, strings.NewReader(sleepFor(0))))
		recorded(rec).check(t, test.status)
		if allow := rec.Header().Get("Allow"); allow != map[int]string{405: "POST"}[test.status] {
			t.Errorf("%s %s: Allow %q", test.method, test.target, allow)
		}
	}
}

// /aaa sleeps for as long as it is told, and no longer than its client stays.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 1, Queue: 1}, nil)
		c := f.dial()
		for _, seconds := range []int{0, 1, maxSleep} {
			began := time.Now()
			a := c.do(200, "POST", "/aaa", sleepFor(seconds))
			if got, want := time.Since(began), time.Duration(seconds)*time.Second; got != want {
				t.Errorf("answered after %v, want %v", got, want)
			}
			if want := sleepFor(seconds) + "\n"; a.body != want || a.header.Get("Content-Type") != "application/json" || a.header.Get("Content-Length") != strconv.Itoa(len(want)) {
				t.Errorf("%+v, want %s", a, want)
			}
		}

		c.send(request("POST", "/aaa", sleepFor(maxSleep)))
		time.Sleep(time.Second)
		if n := f.s.active.Load(); n != 1 {
			t.Fatalf("%d requests are active, want 1", n)
		}
		c.conn.Close()
		synctest.Wait()
		if n := f.s.active.Load(); n != 0 {
			t.Error("the sleep goes on after its client has left")
		}
	})
}

// A sleep that is cut off says so to whoever still reads.
func TestSleepInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		rec := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(ctx, "POST", "/aaa", strings.NewReader(sleepFor(3600)))
		began := time.Now()
		Sleep(100, func(h http.Handler) http.Handler { return h }).ServeHTTP(rec, req)
		if got := time.Since(began); got != time.Minute {
			t.Errorf("ended after %v, want a minute", got)
		}
		recorded(rec).check(t, 503)
	})
}

// ab counts a response as failed whose length is not that of the first.
func TestConstantLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Config{Workers: 2, Queue: 8}, nil)
		c := f.dial()
		lengths, ids := make(map[string]int), make(map[string]bool)
		for n := range 1000 {
			a := c.do(202, "POST", "/bbb", sleepFor(n%7))
			lengths[a.header.Get("Content-Length")]++
			ids[a.body] = true
			if got := strconv.Itoa(len(a.body)); got != a.header.Get("Content-Length") {
				t.Fatalf("Content-Length %s, body of %s", a.header.Get("Content-Length"), got)
			}
		}
		if len(lengths) != 1 || len(ids) != 1000 {
			t.Errorf("lengths %v, %d different answers; want one length, 1000 answers", lengths, len(ids))
		}
	})
}

// The oracle is encoding/json: what parseSleep accepts, it reads in the same
// way. The reverse need not be so.
// A wrapper of each request's own would learn nothing, and take 16 KiB for each job.
func TestSleepIsWrappedOnce(t *testing.T) {
	wrapped := 0
	h := Sleep(100, func(h http.Handler) http.Handler {
		wrapped++
		return h
	})
	for range 3 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/bbb", strings.NewReader(sleepFor(0))))
	}
	if wrapped != 1 {
		t.Errorf("the handler was wrapped %d times for 3 requests, want once", wrapped)
	}
}

func FuzzParseSleep(f *testing.F) {
	for _, seed := range []string{
		`{"sleep_time":0}`, `{"sleep_time": 86400 }`, `{"sleep_time":86401}`, `{"sleep_time":-0}`, `{"sleep_time":-1}`, `{"sleep_time":1.0}`, `{"sleep_time":1e1}`,
		`{"sleep_time":null}`, `{"sleep_time":"1"}`, `{"Sleep_Time":1}`, `{"sleep\u005ftime":1}`, `{"ſleep_time":1}`, `{"sleep_time":1,"sleep_time":2}`, `{"sleep_time":1,}`,
		`{,"sleep_time":1}`, `{"sleep_time"::1}`, `{"sleep_time":1]`, `{"sleep_time":[1]}`, `{"sleep_time":{}}`, `{"sleep_time":1}{}`, `{"sleep_time":1}` + "\x00", `{"sleep_time":01}`,
		`{"sleep_time":9223372036854775808}`, `{"sleep_time":1,"x":2}`, `{"x":{"sleep_time":1}}`, `{}`, `[]`, `null`, ``, ` `, "{\"sleep_time\xff\":1}", `{"sleep_time":1 2}`, `{"sleep_time":1 "sleep_time":2}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		seconds, err := parseSleep(body)
		if err != nil {
			if seconds != 0 {
				t.Errorf("%q: %d beside the error %v", body, seconds, err)
			}
			return
		}
		if seconds < 0 || seconds > maxSleep {
			t.Errorf("%q: %d is out of range", body, seconds)
		}
		var oracle struct {
			SleepTime *int64 `json:"sleep_time"`
		}
		if err := json.Unmarshal(body, &oracle); err != nil || oracle.SleepTime == nil || *oracle.SleepTime != seconds {
			t.Fatalf("%q is accepted as %d; json reads %v, %v", body, seconds, oracle.SleepTime, err)
		}
		again, err := json.Marshal(oracle)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := parseSleep(again); n != seconds || err != nil {
			t.Errorf("%q is %d; written again as %s it is %d, %v", body, seconds, again, n, err)
		}
	})
}

// A request that was accepted when the limit was larger is served.
func TestAgainHasNoLimit(t *testing.T) {
	body := strings.Repeat(" ", 2<<20) + `{"sleep_time":0}`
	r := httptest.NewRequest("POST", "/bbb", strings.NewReader(body))
	r.Pattern = "POST /bbb"
	w := httptest.NewRecorder()
	Again(http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Errorf("%d %s, want 200", w.Code, w.Body)
	}
}
