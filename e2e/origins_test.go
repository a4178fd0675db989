package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// otherSite serves an empty page of an origin of its own.
func otherSite(t *testing.T) *httptest.Server {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!doctype html><title>elsewhere</title><link rel=icon href=data:,>")
	}))
	t.Cleanup(site.Close)
	return site
}

// A page of an origin that is listed submits work, follows it and reads the response;
// with the preflight that its headers need, and the headers that it reads.
func TestListedOriginFollowsAJob(t *testing.T) {
	site := otherSite(t)
	p := start(t, "-cors-origins", "https://app.example,"+site.URL)
	browser := browse(t)
	browser.do(chromedp.Navigate(site.URL))
	script := `(async () => {
		const server = "http://` + p.addr + `";
		const submitted = await fetch(server + "/bbb", {
			method: "POST", body: '{"sleep_time":1}', credentials: "include",
			headers: {"Content-Type": "application/json", "Idempotency-Key": "one", "Prefer": "wait=0"},
		});
		const job = submitted.headers.get("Location");
		const seen = [submitted.status, submitted.headers.get("Content-Location") === job + "/response", submitted.headers.get("Preference-Applied")];
		const last = await new Promise((done, failed) => {
			const events = new EventSource(server + job);
			events.onerror = () => failed("the stream has failed");
			events.addEventListener("state", (e) => {
				const now = JSON.parse(e.data);
				if (now.ended_at) { events.close(); done(now.state); }
			});
		});
		const response = await fetch(server + job + "/response");
		seen.push(last, response.status, response.headers.get("Job-State"), await response.text());
		const gone = await fetch(server + job, {method: "DELETE"});
		seen.push(gone.status, (await gone.json()).status);
		return JSON.stringify(seen);
	})()`
	browser.expectTrouble(true) // the 409 at the end
	got := evaluate[string](browser, script, chromedp.EvalAwaitPromise)
	if want := `[202,true,"wait=0","done",200,"done","{\"sleep_time\":1}\n",409,409]`; got != want {
		t.Errorf("the page has seen %s, want %s", got, want)
	}
}

// A page of another origin can neither submit work, however it tries, nor read.
func TestOtherOriginsAreRefused(t *testing.T) {
	for _, listed := range [][]string{nil, {"-cors-origins", "https://app.example"}} {
		site := otherSite(t)
		p := start(t, append(listed, "-log-jobs", "-upstream", "http://127.0.0.1:1")...)
		browser := browse(t)
		browser.expectTrouble(true)
		browser.do(chromedp.Navigate(site.URL))
		script := `(async () => {
			const server = "http://` + p.addr + `";
			const body = '{"sleep_time":0}';
			const seen = [];
			const tell = (what) => (r) => seen.push(what + " " + (r && r.status));
			for (const path of ["/aaa", "/bbb", "/sync/x", "/async/x"]) {
				await fetch(server + path, {method: "POST", body, mode: "no-cors"}).then(tell(path), tell(path));
				await fetch(server + path, {method: "POST", body, mode: "no-cors", keepalive: true}).then(tell(path), tell(path));
				await fetch(server + path, {method: "POST", body, headers: {"Idempotency-Key": "x"}}).then(tell(path), tell(path));
				navigator.sendBeacon(server + path, body);
			}
			await fetch(server + "/healthz").then(tell("read"), tell("read"));
			return seen.filter(s => !s.endsWith(" undefined") && !s.endsWith(" 0"));
		})()`
		if got := evaluate[[]string](browser, script, chromedp.EvalAwaitPromise); len(got) > 0 {
			t.Errorf("%q: a page of another origin has got %q", listed, got)
		}
		// What comes after all of that runs, and nothing before it has. Only jobs are
		// logged, and what /aaa runs is none. A preflight is for the upstream to answer.
		response, err := http.Post(fmt.Sprintf("http://%s/bbb", p.addr), "application/json", strings.NewReader(brief))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		p.AwaitLog(regexp.MustCompile(`( job ended .*target=/bbb )`))
		if n := strings.Count(p.Text(), " method=POST target="); response.StatusCode != 202 || n != 1 {
			t.Errorf("%q: %d, and %d jobs have run, want the last alone:\n%s", listed, response.StatusCode, n, p.Text())
		}
	}
}
