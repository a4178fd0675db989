package admin

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

// send submits a job of h as the mux of a program does, and returns its id.
func (f *fixture) send(h http.HandlerFunc, body string) string {
	f.t.Helper()
	mux := http.NewServeMux()
	mux.Handle("POST /{kind}", f.jobs.Async(h))
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", "/work", strings.NewReader(body)))
	_, id, _ := strings.Cut(w.Header().Get("Location"), "/jobs/")
	if w.Code != 202 || id == "" {
		f.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return id
}

func TestFailedJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 5}, nil)
		ran := ""
		works := false
		h := func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if ran += string(body); !works {
				panic("on purpose")
			}
			time.Sleep(time.Second)
		}
		var ids []string
		for _, name := range strings.Split("abcdefghi", "") {
			ids = append(ids, f.send(h, name))
			time.Sleep(time.Second)
			synctest.Wait()
		}
		done := f.submit(func(http.ResponseWriter, *http.Request) {})
		synctest.Wait()
		works, ran = true, ""

		// What is refused changes nothing.
		f.expect(f.do("POST", "/jobs/"+ids[0]+"/retry", "", "Sec-Fetch-Site: cross-site"), 403)
		f.expect(f.do("DELETE", "/jobs?state=failed", "", "Host: evil.example"), 421)
		f.expect(f.do("POST", "/jobs/"+done+"/retry", ""), 409, "want a failed one")
		f.expect(f.do("POST", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA/retry", ""), 404)
		for _, query := range []string{"", "state=done", "state=failed&state=failed", "state=failed&limit=1", "state=failed&status=x", "state=failed&status=99"} {
			f.expect(f.do("POST", "/jobs/retry?"+query, ""), 400, "want")
			f.expect(f.do("DELETE", "/jobs?"+query, ""), 400, "want")
		}
		f.expect(f.do("POST", "/jobs/retry?state=failed&status=503", ""), 200, `"retried":0`)
		f.expect(f.do("DELETE", "/jobs?state=failed&route=POST+/other", ""), 200, `"discarded":0`)

		f.expect(f.do("POST", "/jobs/"+ids[1]+"/retry", ""), 202, ids[1], `"state":"queued"`)
		synctest.Wait()
		f.expect(f.do("POST", "/jobs/"+ids[1]+"/retry", ""), 409)
		f.expect(f.do("DELETE", "/jobs/"+ids[8], ""), 200, `"discarded":1`)
		f.expect(f.do("DELETE", "/jobs/"+ids[8], ""), 404)

		// One runs, and five places are left.
		all := "/jobs/retry?state=failed&status=500&route=" + url.QueryEscape("POST /{kind}")
		f.expect(f.do("POST", all, ""), 503, "5 of 7 jobs run again", "the queue is full")
		time.Sleep(time.Minute)
		synctest.Wait()
		if ran != "bacdef" {
			t.Errorf("%s ran, want b, and then the others in the order in which they had ended", ran)
		}
		f.expect(f.do("DELETE", "/jobs?state=failed", ""), 200, `"discarded":2`)
		f.expect(f.do("GET", "/jobs?state=failed", ""), 200, `"jobs":[]`)
	})
}
