package header

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// ParseDelay returns when a request asks to be run: Run-At names the time, as an HTTP date,
// or Delay the seconds from now. If it asks for nothing, or for what is over, the time is
// zero. It may lie at most so far ahead; if that is not positive, there is no such time. The
// error says what was expected.
func ParseDelay(h http.Header, now time.Time, most time.Duration) (time.Time, error) {
	at, delay := h["Run-At"], h["Delay"]
	switch {
	case len(at)+len(delay) == 0:
		return time.Time{}, nil
	case most <= 0:
		return time.Time{}, errors.New("jobs cannot be delayed here; want neither Run-At nor Delay")
	case len(at)+len(delay) > 1:
		return time.Time{}, errors.New("there are several of Run-At and Delay; want one of them, once")
	}
	left := time.Duration(0)
	if len(delay) > 0 {
		seconds, err := strconv.ParseUint(delay[0], 10, 63)
		if err != nil {
			return time.Time{}, fmt.Errorf("the Delay is %.40q; want whole seconds, at most %d", delay[0], int64(most.Seconds()))
		}
		left = time.Duration(min(seconds, uint64(most/time.Second)+1)) * time.Second
	} else {
		t, err := http.ParseTime(at[0])
		if err != nil {
			return time.Time{}, fmt.Errorf("the Run-At is %.40q; want an HTTP date, such as %s", at[0], now.UTC().Format(http.TimeFormat))
		}
		left = t.Sub(now)
	}
	switch {
	case left > most:
		return time.Time{}, fmt.Errorf("the time to run lies too far ahead; want at most %v from now", most)
	case left <= 0:
		return time.Time{}, nil
	}
	return now.Add(left), nil
}

// RetryAfter returns how long a response asks to wait: in seconds, or until an HTTP date.
// What is neither is 0, as is what is over.
func RetryAfter(value string, now time.Time) time.Duration {
	const most = 1000 * time.Hour
	if seconds, err := strconv.ParseUint(value, 10, 63); err == nil {
		return time.Duration(min(seconds, uint64(most/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(0, min(t.Sub(now), most))
	}
	return 0
}
