// Package header parses the request headers that say how a client wants to be
// answered: Prefer, Idempotency-Key and Accept.
package header

import (
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"time"
)

// MaxWait is the longest time that a client can ask the server to wait before it
// answers. Many proxies give up after 60 s, so a limit of 60 s would race with them.
const MaxWait = 50 * time.Second

// Prefer holds the preferences of a client (RFC 7240) that concern a queue.
type Prefer struct {
	RespondAsync bool
	Wait         time.Duration // at most MaxWait; -1 if absent
	Rest         []string      // all other preferences, unchanged
}

// ParsePrefer parses the lines of a Prefer header. The first instance of a
// preference counts, and invalid preferences are ignored, as the RFC requires.
func ParsePrefer(lines []string) Prefer {
	p := Prefer{Wait: -1}
	if len(lines) == 0 {
		return p
	}
	var async, wait bool // whether the preference was seen
	for element := range split(strings.Join(lines, ","), ',') {
		name, value := preference(element)
		switch {
		case name == "respond-async":
			p.RespondAsync = p.RespondAsync || !async && value == ""
			async = true
		case name == "wait":
			if seconds, ok := amount(value, time.Second, MaxWait); ok && !wait {
				p.Wait = seconds
			}
			wait = true
		case name != "":
			p.Rest = append(p.Rest, element)
		}
	}
	return p
}

// Strip returns the request without the preferences that p understood. The handler
// may pass the request on to another queue, for which they were not meant.
func (p Prefer) Strip(r *http.Request) *http.Request {
	if r.Header["Prefer"] == nil {
		return r
	}
	r = r.WithContext(r.Context())
	r.Header = r.Header.Clone()
	if r.Header["Prefer"] = p.Rest; len(p.Rest) == 0 {
		delete(r.Header, "Prefer")
	}
	return r
}

// preference returns the name of a preference in lower case and its value,
// without parameters.
func preference(element string) (name, value string) {
	if element[0] == ';' {
		return "", "" // parameters without a preference
	}
	for part := range split(element, ';') {
		name, value, _ = strings.Cut(part, "=")
		break
	}
	value = strings.Trim(value, " \t")
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	return strings.ToLower(strings.Trim(name, " \t")), value
}

// amount parses a whole number of units. It returns most for anything longer.
func amount(digits string, unit, most time.Duration) (time.Duration, bool) {
	if digits == "" {
		return 0, false
	}
	n := time.Duration(0)
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = min(n*10+time.Duration(c-'0')*unit, most)
	}
	return n, true
}

// split yields the non-empty elements of a list, trimmed. It does not split at a
// separator within quotes.
func split(list string, separator byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		begin, quoted := 0, false
		for i := 0; i <= len(list); i++ {
			switch {
			case i == len(list) || list[i] == separator && !quoted:
				element := strings.Trim(list[begin:min(i, len(list))], " \t")
				if element != "" && !yield(element) {
					return
				}
				begin = i + 1
			case list[i] == '"':
				quoted = !quoted
			case list[i] == '\\' && quoted:
				i++
				if i == len(list) {
					i-- // a trailing \ escapes nothing; the loop still has to see the end
				}
			}
		}
	}
}

// maxKey is the maximum length of an idempotency key in bytes.
const maxKey = 255

// ParseKey parses the lines of an Idempotency-Key header: a quoted string, as in a
// structured field (RFC 9651), or a bare one, since many clients send that. The
// key is empty if there are no lines.
func ParseKey(lines []string) (key string, err error) {
	switch len(lines) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", errors.New("Idempotency-Key is given more than once; want it once")
	}
	key = strings.Trim(lines[0], " \t")
	if strings.HasPrefix(key, `"`) {
		if key, err = unquote(key[1:]); err != nil {
			return "", err
		}
	}
	for _, c := range []byte(key) {
		if c < ' ' || c > '~' {
			return "", errors.New("Idempotency-Key has a character that is not printable ASCII")
		}
	}
	if len(key) == 0 || len(key) > maxKey {
		return "", fmt.Errorf("Idempotency-Key has %d bytes; want 1 to %d", len(key), maxKey)
	}
	return key, nil
}

// unquote parses a string up to its closing quote. Parameters may follow.
func unquote(s string) (string, error) {
	var text []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			if rest := strings.TrimLeft(s[i+1:], " "); rest != "" && rest[0] != ';' {
				return "", errors.New("Idempotency-Key continues after its closing quote")
			}
			return string(text), nil
		case s[i] == '\\':
			i++
			if i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", errors.New(`Idempotency-Key has a \ before something other than " and \`)
			}
		}
		text = append(text, s[i])
	}
	return "", errors.New("Idempotency-Key has no closing quote")
}

// AcceptsEvents reports whether the lines of an Accept header name
// text/event-stream. A wildcard does not count, since ordinary clients send one.
func AcceptsEvents(lines []string) bool {
	for element := range split(strings.Join(lines, ","), ',') {
		kind, _, _ := strings.Cut(element, ";")
		if !strings.EqualFold(strings.Trim(kind, " \t"), "text/event-stream") {
			continue
		}
		refused := false
		for parameter := range split(element, ';') {
			name, value, ok := strings.Cut(parameter, "=")
			if ok && strings.EqualFold(strings.Trim(name, " \t"), "q") {
				value = strings.Trim(value, " \t")
				refused = value != "" && strings.Trim(value, "0.") == ""
			}
		}
		if !refused {
			return true
		}
	}
	return false
}
