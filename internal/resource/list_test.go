package resource

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/store"
)

func (f *fixture) list(method, query string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", nil)
	r.URL.RawQuery = query // as it is: NewRequest would refuse some
	rec := httptest.NewRecorder()
	f.List(rec, r)
	return rec
}

type listed struct {
	Jobs []json.RawMessage `json:"jobs"`
	Next *string           `json:"next"`
}

func parseListed(t testing.TB, rec *httptest.ResponseRecorder) (l listed) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(rec.Body.String()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil || rec.Code != 200 || l.Jobs == nil {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	return l
}

// The list shows of each job what GET of the job shows, byte by byte, and then what
// was asked for.
func TestList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		if rec := f.list("GET", ""); rec.Body.String() != "{\"jobs\":[]}\n" {
			t.Errorf("of no jobs: %d %s", rec.Code, rec.Body)
		}
		var jobs []*store.Job
		for _, name := range all {
			time.Sleep(time.Second)
			jobs = append(jobs, f.in(t, name))
		}
		// all begins with the two that have not ended.
		order := []int{1, 0, 6, 5, 4, 3, 2}
		for query, want := range map[string][]int{
			"":                     order,
			"state=":               order,
			"state=&limit=&after=": order,
			"state=queued":         {0},
			"state=running":        {1},
			"state=done":           {2},
			"state=failed":         {4, 3},
			"state=canceled":       {5},
			"state=dropped":        {6},
			"limit=7":              order,
			"limit=3":              order[:3],
			"limit=1&state=failed": {4},
		} {
			rec := f.list("GET", query)
			checkHeader(t, query, rec.Header(), map[string]string{
				"Content-Type": "application/json", "Content-Length": strconv.Itoa(rec.Body.Len()), "Cache-Control": "no-store", "Job-State": "",
			})
			l := parseListed(t, rec)
			var got, shown []string
			for _, j := range l.Jobs {
				got = append(got, string(j))
			}
			for _, i := range want {
				job, _ := strings.CutSuffix(f.do("GET", urlOf(jobs[i])).Body.String(), "}\n")
				answer := ""
				if all[i] == "done" {
					answer = `,"response_status":404`
				}
				shown = append(shown, job+`,"method":"POST","target":"/things?q=1","route":"POST /things"`+answer+`}`)
			}
			if !slices.Equal(got, shown) {
				t.Errorf("%q: %s, want %s", query, got, shown)
			}
			if (l.Next != nil) != (query == "limit=3" || query == "limit=1&state=failed") {
				t.Errorf("%q: next is %v", query, l.Next)
			}
		}
		for _, method := range []string{"GET", "HEAD"} {
			if rec := f.list(method, "limit=2"); rec.Code != 200 {
				t.Errorf("%s: %d", method, rec.Code)
			}
		}
	})
}

func TestListNext(t *testing.T) {
	f := newFixture()
	want := make(map[string]bool)
	for i := range 500 {
		want[f.in(t, all[i%len(all)]).ID.String()] = true
	}
	for _, limit := range []int{1, 99, 100, 500, 1000} {
		after, seen, pages := "", make(map[string]bool), 0
		for ; ; pages++ {
			l := parseListed(t, f.list("GET", fmt.Sprintf("limit=%d&after=%s", limit, after)))
			for _, j := range l.Jobs {
				var shown struct{ ID string }
				if err := json.Unmarshal(j, &shown); err != nil {
					t.Fatal(err)
				}
				if id := shown.ID; seen[id] || !want[id] {
					t.Fatalf("%s is shown twice, or unknown", id)
				} else {
					seen[id] = true
				}
			}
			if l.Next == nil {
				break
			}
			after = *l.Next
		}
		if len(seen) != 500 || pages != (500-1)/limit {
			t.Errorf("pages of %d: %d jobs, %d had a next", limit, len(seen), pages)
		}
	}
	if l := parseListed(t, f.list("GET", "")); len(l.Jobs) != usualLimit {
		t.Errorf("%d jobs without a limit", len(l.Jobs))
	}
}

func TestListRefuses(t *testing.T) {
	f := newFixture()
	f.in(t, "running")
	long := strings.Repeat("x", 100_000)
	for query, says := range map[string]string{
		"limit=0":                        `limit is "0"; want a whole number from 1 to 1000`,
		"limit=1001":                     `limit is "1001"`,
		"limit=-1":                       `limit is "-1"`,
		"limit=1.5":                      `limit is "1.5"`,
		"limit=ten":                      `limit is "ten"`,
		"limit=99999999999999999999":     "want a whole number",
		"limit=%20":                      `limit is " "`,
		"state=Queued":                   `state is "Queued"; want queued, running, done, failed, canceled or dropped`,
		"state=queued,running":           `want queued`,
		"state=ended":                    `state is "ended"`,
		"after=x":                        `after is "x"; want the next of an earlier page`,
		"after=k1":                       "want the next of an earlier page",
		"after=%00":                      "want the next of an earlier page",
		"page=2":                         `the parameter "page" is unknown; want state, limit and after alone`,
		"State=queued":                   `"State" is unknown`,
		"=1":                             `"" is unknown`,
		"offset":                         `"offset" is unknown`,
		"limit=1&limit=1":                "limit is there 2 times; want it once",
		"state=&state=queued&state=done": "state is there 3 times",
		"after=&after=":                  "after is there 2 times",
		"limit=%zz":                      "malformed",
		"limit=1;state=done":             "malformed",
		"after=" + long:                  "want the next of an earlier page",
		"state=" + long:                  "want queued",
		"limit=" + long:                  "want a whole number",
		long:                             "is unknown",
	} {
		rec := f.list("GET", query)
		checkProblem(t, query[:min(len(query), 40)], rec, 400, says)
		if rec.Body.Len() > 1000 {
			t.Errorf("%.40s: the answer has %d bytes", query, rec.Body.Len())
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "get"} {
		rec := f.list(method, "limit=0") // the method comes first
		checkProblem(t, method, rec, 405, "GET, HEAD")
		checkHeader(t, method, rec.Header(), map[string]string{"Allow": "GET, HEAD"})
	}
}

func TestListHead(t *testing.T) {
	f := newFixture()
	f.in(t, "done")
	server := httptest.NewServer(http.HandlerFunc(f.List))
	defer server.Close()
	get, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(get.Body)
	get.Body.Close()
	head, err := http.Head(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	head.Body.Close()
	if head.StatusCode != 200 || head.ContentLength != int64(len(body)) || head.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v, want a length of %d", head.StatusCode, head.Header, len(body))
	}
}
