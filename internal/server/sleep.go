package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"holdfast"
	"holdfast/internal/problem"
	"holdfast/internal/store"
)

// maxSleep is the longest sleep_time, a day.
const maxSleep = 86400

// The demo's business is to sleep. It stands for whatever takes its time.

// Sleep returns a handler that takes {"sleep_time":n}, sleeps for n seconds or
// until the request's context ends, and answers {"sleep_time":n}.
func Sleep(maxBody int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seconds, ok := readSleep(w, r, maxBody)
		if !ok {
			return
		}
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
	})
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

// Logged logs each request that h has run, with the beginning of the id of its job if
// it is one: the whole would let whoever reads the log read and cancel the job.
func Logged(log *slog.Logger, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		id := ""
		if job, ok := store.ParseID(holdfast.JobID(r.Context())); ok {
			id = job.Short()
		}
		log.Info("ran", "path", r.URL.Path, "job", id)
	})
}

// Checked passes requests that Sleep takes on to next, and answers all others
// itself: what is wrong with a request must be said before it is accepted as a
// job.
func Checked(maxBody int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := readSleep(w, r, maxBody); ok {
			next.ServeHTTP(w, r)
		}
	})
}

// readSleep returns the seconds that a request is about, or answers it and returns
// false.
func readSleep(w http.ResponseWriter, r *http.Request, maxBody int64) (seconds int64, ok bool) {
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
