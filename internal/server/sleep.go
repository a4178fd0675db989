package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"holdfast"
	"holdfast/internal/problem"
)

// maxSleep is the longest sleep_time, a day.
const maxSleep = 86400

// The demo's business is to sleep. It stands for whatever takes its time.

// Sleep returns a handler that takes {"sleep_time":n} and lets wrap decide when and
// where it sleeps for n seconds, or until the request's context ends, and answers
// {"sleep_time":n}. The request is parsed once, at the door, so that a wrong one is
// answered before it could become a job.
func Sleep(maxBody int64, wrap func(http.Handler) http.Handler) http.Handler {
	// Once, and not for each request: what wraps it learns how long it runs.
	next := wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seconds, ok := sleepTime(w, r, maxBody); ok {
			sleep(w, r, seconds)
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seconds, ok := sleepTime(w, r, maxBody); ok {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), sleepKey{}, seconds)))
		}
	})
}

// sleepKey is the key of what a request says, an int64, among the values of its context.
type sleepKey struct{}

// sleepTime returns what a request says, or answers what is wrong with it. A request that was
// stored comes back without the values of its context.
func sleepTime(w http.ResponseWriter, r *http.Request, maxBody int64) (seconds int64, ok bool) {
	if seconds, ok := r.Context().Value(sleepKey{}).(int64); ok {
		return seconds, true
	}
	body, ok := problem.ReadBody(w, r, maxBody)
	if !ok {
		return 0, false
	}
	seconds, err := parseSleep(body)
	if err != nil {
		problem.Write(w, http.StatusBadRequest, fmt.Sprintf(`%v; want {"sleep_time": n}, n a whole number of seconds from 0 to %d`, err, maxSleep))
		return 0, false
	}
	return seconds, true
}

// Again returns the handler of requests that were queued before a restart: of the demo, or
// of the gateway, whose requests have matched no pattern. What was accepted is not refused
// since the server has smaller limits than before.
func Again(gateway http.Handler) http.Handler {
	demo := Sleep(math.MaxInt64, func(h http.Handler) http.Handler { return h })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Pattern {
		case "POST /aaa", "POST /bbb":
			demo.ServeHTTP(w, r)
		case "":
			gateway.ServeHTTP(w, r)
		default:
			problem.Write(w, http.StatusNotFound, "the server no longer has the route that the request was for")
		}
	})
}

// sleep sleeps for so many seconds, and answers.
func sleep(w http.ResponseWriter, r *http.Request, seconds int64) {
	if !rest(r.Context(), time.Duration(seconds)*time.Second) {
		problem.Write(w, http.StatusServiceUnavailable, "the sleep was interrupted")
		return
	}
	body := make([]byte, 0, 32)
	body = append(body, `{"sleep_time":`...)
	body = strconv.AppendInt(body, seconds, 10)
	body = append(body, "}\n"...)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

// rest sleeps for d, and reports whether ctx has let it.
func rest(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	done := time.NewTimer(d)
	defer done.Stop()
	select {
	case <-done.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// LogJob returns a JobsConfig.OnEnd that logs each job.
func LogJob(log *slog.Logger) func(holdfast.JobInfo) {
	return func(i holdfast.JobInfo) {
		log.Info("job ended", "job", i.ID, "method", i.Method, "target", i.Target, "state", i.State, "status", i.Status, "attempts", i.Attempts, "wait", i.Wait, "run", i.Run)
	}
}

// parseSleep reads {"sleep_time": n}.
func parseSleep(body []byte) (int64, error) {
	if seconds, ok := parsePlain(body); ok {
		return seconds, nil
	}
	var seconds *int64
	if err := problem.Unmarshal(body, map[string]any{"sleep_time": &seconds}); err != nil {
		return 0, err
	}
	switch {
	case seconds == nil:
		return 0, errors.New("sleep_time is missing")
	case *seconds < 0 || *seconds > maxSleep:
		return 0, fmt.Errorf("sleep_time is %d", *seconds)
	}
	return *seconds, nil
}

// parsePlain reads the body in the form that it mostly has, at a tenth of the
// cost. It says no also to what is right but unusual.
func parsePlain(body []byte) (int64, bool) {
	const space = " \t\r\n"
	body = bytes.Trim(body, space)
	body, begins := bytes.CutPrefix(body, []byte(`{"sleep_time":`))
	body, ends := bytes.CutSuffix(body, []byte("}"))
	body = bytes.Trim(body, space)
	if !begins || !ends || len(body) == 0 || len(body) > 5 || body[0] == '0' && len(body) > 1 {
		return 0, false
	}
	var seconds int64
	for _, c := range body {
		if c < '0' || c > '9' {
			return 0, false
		}
		seconds = seconds*10 + int64(c-'0')
	}
	return seconds, seconds <= maxSleep
}
