package main

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failsafe-go/failsafe-go/priority"
)

// The peers in Go let as many calls through at once as there are slots, and refuse
// those whose turn has not come within the patience. The adaptive limiter has a
// clock of its own that does not end, and finds its limit itself.
func TestHandlersLimit(t *testing.T) {
	for name, handler := range handlers {
		if name == "adaptive" {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			h := handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(600 * time.Millisecond) }), limit{slots: 2, queue: 10, patience: time.Second})
			start := time.Now()
			var mu sync.Mutex
			answers := make(map[time.Duration][]int) // statuses by time
			var calls sync.WaitGroup
			for range 6 {
				calls.Go(func() {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
					mu.Lock()
					defer mu.Unlock()
					answers[time.Since(start)] = append(answers[time.Since(start)], w.Code)
				})
			}
			calls.Wait()
			late := answers[time.Second]
			if len(answers[600*time.Millisecond]) != 2 || len(answers[1200*time.Millisecond]) != 2 || len(late) != 2 || judge(late[0], nil, 0, class{}) != refused {
				t.Errorf("%s: %v; want two answers after 600ms, two after 1.2s, and two refusals after 1s", name, answers)
			}
		})
	}
}

func TestPriorityOf(t *testing.T) {
	for header, want := range map[string]priority.Priority{
		"": priority.Medium, "u=0": priority.VeryHigh, "u=1": priority.High, "u=2": priority.High, "u=3": priority.Medium,
		"u=4": priority.Low, "u=5": priority.Low, "u=6": priority.VeryLow, "u=7": priority.VeryLow, "odd": priority.Medium,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Priority", header)
		if got := priorityOf(r); got != want {
			t.Errorf("%q is %v, want %v", header, got, want)
		}
	}
}

// What is not installed is named, and does not end the run.
func TestNotInstalled(t *testing.T) {
	if c := installed("no-such-program", "A", nil); c.missing != "no-such-program is not installed" || c.start != nil {
		t.Errorf("%+v", c)
	}
}
