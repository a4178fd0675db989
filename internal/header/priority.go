package header

import (
	"net/http"
	"regexp"
	"strings"

	"holdfast/internal/line"
)

// maxPriority bounds what is parsed. Every member that the RFC defines takes 4 bytes.
const maxPriority = 256

// member is a member of a dictionary by RFC 9651, at the beginning of a text.
var member = func() *regexp.Regexp {
	const (
		key  = `[a-z*][a-z0-9_.*-]*`
		item = `(?:-?[0-9]{1,15}|-?[0-9]{1,12}\.[0-9]{1,3}|"(?:[ !#-\[\]-~]|\\["\\])*"|[A-Za-z*][A-Za-z0-9!#$%&'*+.^_` + "`" + `|~:/-]*|:[A-Za-z0-9+/=]*:|\?[01]|@-?[0-9]{1,15})`
		with = `(?:; *` + key + `(?:=` + item + `)?)*`
		list = `\( *(?:` + item + with + `(?: +` + item + with + `)*)? *\)`
	)
	m := regexp.MustCompile(`^(` + key + `)(?:=(` + item + `|` + list + `))?` + with)
	m.Longest()
	return m
}()

// Priority returns the urgency that the Priority header of a request names (RFC 9218).
// What is not as the RFC has it counts as absent.
func Priority(h http.Header) int {
	lines := h["Priority"]
	rest := strings.Trim(strings.Join(lines, ","), " ")
	if len(rest) > maxPriority {
		return line.Normal
	}
	urgency := line.Normal
	for rest != "" {
		m := member.FindStringSubmatch(rest)
		if m == nil {
			return line.Normal
		}
		if name, value := m[1], m[2]; name == "u" { // the last one counts
			urgency = line.Normal
			if len(value) == 1 && value[0] >= '0' && value[0] <= '7' {
				urgency = int(value[0] - '0')
			}
		}
		if rest = strings.TrimLeft(rest[len(m[0]):], " \t"); rest == "" {
			break
		}
		next, another := strings.CutPrefix(rest, ",")
		if rest = strings.TrimLeft(next, " \t"); !another || rest == "" {
			return line.Normal
		}
	}
	return urgency
}
