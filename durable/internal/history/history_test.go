package history

import (
	"testing"
)

// Each line is what was done one after the other, and whether a server can have answered so.
func TestModel(t *testing.T) {
	submit := Op{Kind: Submit, Life: 1, Status: 202, URL: "/jobs/a"}
	queued := Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "queued"}
	running := Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "running"}
	done := Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "done", Response: "x"}
	canceled := Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "canceled"}
	run := Op{Kind: Run, Life: 1}
	cancel := func(status int) Op { return Op{Kind: Cancel, Life: 1, URL: "/jobs/a", Status: status} }
	missing := Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 404}
	other := func(o Op) Op { o.URL = "/jobs/b"; return o }
	later := func(o Op) Op { o.Life = 2; return o }
	lost := func(k Kind) Op { return Op{Kind: k, Life: 1, URL: "/jobs/a", Lost: true} }
	for _, c := range []struct {
		name string
		ok   bool
		ops  []Op
	}{
		{"an ordinary life", true, []Op{submit, queued, run, running, done, submit, done, cancel(409)}},
		{"canceled while queued", true, []Op{submit, cancel(200), canceled, cancel(200), later(canceled)}},
		{"canceled while it ran", true, []Op{submit, run, cancel(202), canceled}},
		{"canceled twice while it ran", true, []Op{submit, run, cancel(202), cancel(200), canceled}},
		{"a crash", true, []Op{submit, run, running, later(queued), later(run), later(done)}},
		{"refused", true, []Op{{Kind: Submit, Status: 503}, submit}},
		{"an answer lost", true, []Op{lost(Submit), run, submit, running}},
		{"a request lost", true, []Op{lost(Submit), submit, done}},
		{"a cancel lost", true, []Op{submit, lost(Cancel), canceled}},
		{"a cancel that did not arrive", true, []Op{submit, lost(Cancel), run, done}},
		{"its key free again", true, []Op{submit, cancel(200), other(submit), canceled, other(queued), cancel(200), run, other(done)}},
		{"an end that nobody saw", true, []Op{submit, cancel(409), done}},

		{"a promise forgotten", false, []Op{submit, later(missing)}},
		{"two jobs under a key", false, []Op{submit, later(other(submit))}},
		{"two jobs under a key after the end of one", false, []Op{submit, done, other(submit)}},
		{"a former job is done", false, []Op{submit, cancel(200), other(submit), done}},
		{"an end taken back", false, []Op{submit, done, later(queued)}},
		{"another response", false, []Op{submit, done, {Kind: Look, Life: 2, URL: "/jobs/a", Status: 200, State: "done", Response: "y"}}},
		{"another end", false, []Op{submit, canceled, later(done)}},
		{"run after its end", false, []Op{submit, done, later(run)}},
		{"run after it was canceled", false, []Op{submit, cancel(200), later(run)}},
		{"run twice in a life", false, []Op{submit, run, run}},
		{"run without a promise", false, []Op{{Kind: Submit, Status: 503}, run}},
		{"back in the queue", false, []Op{submit, running, queued}},
		{"canceled as queued while it ran", false, []Op{submit, run, cancel(200)}},
		{"not to be canceled and then canceled", false, []Op{submit, cancel(409), canceled}},
		{"canceled before it was there", false, []Op{cancel(200), submit}},
		{"there before it was made", false, []Op{queued, submit}},
	} {
		h := New()
		for _, o := range c.ops {
			h.Add(h.Now(), o)
		}
		if err := h.Check(); (err == nil) != c.ok {
			t.Errorf("%s: %v, want it to be possible: %t", c.name, err, c.ok)
		}
	}
}

// What overlaps may have happened in either order.
func TestOverlap(t *testing.T) {
	submit := Op{Kind: Submit, Life: 1, Status: 202, URL: "/jobs/a"}
	h := New()
	from := h.Now()
	h.Add(from, submit)
	early := h.Now()
	h.Add(h.Now(), Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "done", Response: "x"})
	h.Add(early, Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "queued"})
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	h.Add(h.Now(), Op{Kind: Look, Life: 1, URL: "/jobs/a", Status: 200, State: "queued"})
	if h.Check() == nil {
		t.Error("a job that had ended was queued again, and nothing was said")
	}
}
