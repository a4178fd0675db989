package admin

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
)

// submit makes a job of h and returns its id.
func (f *fixture) submit(h http.HandlerFunc) string {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.jobs.Async(h).ServeHTTP(w, httptest.NewRequest("POST", "/work", nil))
	var job struct{ ID string }
	if err := json.Unmarshal(w.Body.Bytes(), &job); err != nil || job.ID == "" {
		f.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return job.ID
}

// state returns the state of a job.
func (f *fixture) state(id string) string {
	f.t.Helper()
	w := f.do("GET", "/jobs/"+id, "")
	f.expect(w, 200)
	var job struct{ State string }
	if err := json.Unmarshal(w.Body.Bytes(), &job); err != nil {
		f.t.Fatal(err)
	}
	return job.State
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 5}, func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		waits := func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Second) // it takes its time to notice
		}
		running, queued := f.submit(waits), f.submit(waits)
		synctest.Wait()

		// What the guard refuses cancels nothing.
		f.expect(f.do("DELETE", "/jobs/"+queued, "", "Sec-Fetch-Site: cross-site"), 403)
		f.expect(f.do("DELETE", "/jobs/"+queued, "", "Host: evil.example"), 421)
		if got := f.state(queued); got != "queued" || log.Len() > 0 {
			t.Errorf("after refusals the job is %s, the log %s", got, &log)
		}

		f.expect(f.do("DELETE", "/jobs/"+queued, ""), 200, `"state":"canceled"`)
		f.expect(f.do("DELETE", "/jobs/"+running, ""), 202, `"state":"running"`)
		time.Sleep(time.Minute)
		if got := f.state(running); got != "canceled" {
			t.Errorf("the job that was running is %s", got)
		}
		if n := strings.Count(log.String(), "job canceled"); n != 2 {
			t.Errorf("%d records for 2 jobs: %s", n, &log)
		}
		for _, id := range []string{queued, running} {
			if text := log.String(); strings.Contains(text, id[:9]) || !strings.Contains(text, id[:8]) {
				t.Errorf("want the first 8 letters of %s alone in the log: %s", id, text)
			}
		}

		done := f.submit(func(http.ResponseWriter, *http.Request) {})
		synctest.Wait()
		log.Reset()
		f.expect(f.do("DELETE", "/jobs/"+done, ""), 409, "has ended as done")
		f.expect(f.do("DELETE", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA", ""), 404)
		if log.Len() > 0 {
			t.Errorf("what was not canceled is logged: %s", &log)
		}
	})
}

// An operator may cancel while the server drains its queue.
func TestCancelWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 5}, nil)
		id := f.submit(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		synctest.Wait()
		f.stopping.Store(true)
		f.expect(f.do("DELETE", "/jobs/"+id, ""), 202)
	})
}

func TestHeadOfResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 2, Queue: 5}, nil)
		teapot := f.submit(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Set-Cookie", "a=b")
			w.Header().Add("Set-Cookie", "c=d")
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, "<script>")
		})
		moved := f.submit(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
		panicked := f.submit(func(http.ResponseWriter, *http.Request) { panic("oh") })
		slow := f.submit(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })
		synctest.Wait()

		w := f.do("GET", "/jobs/"+teapot+"/head", "")
		f.expect(w, 200, `{"status":418,"reason":"I'm a teapot","header":{`, `"Set-Cookie":["a=b","c=d"]`, `"Content-Type":["text/html"]`)
		if header := w.Header(); header.Get("Content-Type") != "application/json" || header.Get("Set-Cookie") != "" || strings.Contains(w.Body.String(), "script") {
			t.Errorf("%v %s", header, w.Body)
		}
		f.expect(f.do("GET", "/jobs/"+moved+"/head", ""), 200, `"status":302`, `"Location":["/elsewhere"]`)
		f.expect(f.do("GET", "/jobs/"+panicked+"/head", ""), 409, "the job is failed; want one that is done")
		before := time.Now()
		f.expect(f.do("GET", "/jobs/"+slow+"/head", "", "Prefer: wait=30"), 409, "the job is running")
		if time.Since(before) > 0 {
			t.Error("it has waited for the job")
		}
		f.expect(f.do("GET", "/jobs/AAAAAAAAAAAAAAAAAAAAAAAAAA/head", ""), 404, "no such job")
		f.expect(f.do("GET", "/jobs/"+teapot+"/head", "", "Sec-Fetch-Site: cross-site"), 403)
		f.expect(f.do("POST", "/jobs/"+teapot+"/head", ""), 404)
		time.Sleep(time.Hour)
	})
}

// A response often has what a client has sent. It must not act as a page of the
// operator's listener, nor change what the browser does with that.
func TestResponsesAreContained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 5}, nil)
		hostile := func(status int) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				for _, name := range ofTheOrigin {
					w.Header().Set(name, "hostile")
				}
				w.Header().Set("Content-Type", "text/html")
				w.Header().Set("Content-Security-Policy", "script-src *")
				w.Header().Set("Content-Disposition", "inline")
				w.Header().Set("ETag", `"x"`)
				w.WriteHeader(status)
				io.WriteString(w, "<script>")
			}
		}
		for _, status := range []int{200, 401, 500} {
			id := f.submit(hostile(status))
			synctest.Wait()
			w := f.do("GET", "/jobs/"+id+"/response", "")
			if w.Code != status || w.Body.String() != "<script>" {
				t.Errorf("%d %s, want %d and the body as it is", w.Code, w.Body, status)
			}
			for name, want := range map[string]string{
				"Content-Security-Policy": "default-src 'none'; sandbox", "Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff",
				"Content-Type": "text/html", "ETag": `"x"`, "Job-State": "done",
			} {
				if got := w.Header().Values(name); len(got) != 1 || got[0] != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			for _, name := range ofTheOrigin {
				if w.Header().Get(name) != "" {
					t.Errorf("%s is passed on", name)
				}
			}
		}
	})
}

// Long polls and streams of a job work on the admin listener, too.
func TestFollowOnTheAdminListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, holdfast.Config{Workers: 1, Queue: 5}, nil)
		id := f.submit(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second)
			io.WriteString(w, "here")
		})
		w := f.do("GET", "/jobs/"+id, "", "Accept: text/event-stream")
		if text := w.Body.String(); w.Code != 200 || !strings.Contains(text, `"state":"done"`) || !w.Flushed {
			t.Errorf("%d %s", w.Code, text)
		}
		id = f.submit(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * time.Second)
			io.WriteString(w, "here")
		})
		f.expect(f.do("GET", "/jobs/"+id+"/response", "", "Prefer: wait=10"), 200, "here")
	})
}
