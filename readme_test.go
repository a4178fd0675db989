package holdfast_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"holdfast/internal/server"
	"holdfast/plan"
)

// A said is something that a README says, and where.
type said struct {
	line int
	text string
}

// A readme is what of a README is the same in every language.
type readme struct {
	name    string
	steps   []said          // in order: headings by level, items, rows, commands in tables, lines of code without comments
	names   []said          // code in the text, without its backquotes
	links   []said          // what links and pictures lead to
	anchors map[string]bool // what a link within the file may lead to, as GitHub forms it
}

var (
	comments = map[string]*regexp.Regexp{
		"go":      regexp.MustCompile(`(^|\s+)// .*$`),
		"sh":      regexp.MustCompile(`(^|\s+)# .*$`),
		"console": regexp.MustCompile(`(^|\s+)# .*$`),
	}
	heading      = regexp.MustCompile(`^(#+) (.+)$`)
	tableCommand = regexp.MustCompile("`((?:go run|go -C|make|curl)\\b[^`]*)`")
	item         = regexp.MustCompile(`^(-|\d+\.) `)
	codeSpan     = regexp.MustCompile("`([^`]+)`")
	link         = regexp.MustCompile(`\]\(([^)\s]+)\)|<(https?://[^>\s]+)>`)
	ownFlag      = regexp.MustCompile(`(?m)^  (-[a-z0-9-]+)`)
)

func parseReadme(name, markdown string) readme {
	r := readme{name: name, anchors: map[string]bool{}}
	var prose []string
	var language string
	fenced := false
	for i, line := range strings.Split(markdown, "\n") {
		add := func(text string) { r.steps = append(r.steps, said{i + 1, text}) }
		if info, ok := strings.CutPrefix(line, "```"); ok {
			fenced, language = !fenced, info
			add("```" + info)
			line = ""
		} else if fenced {
			if comment := comments[language]; comment != nil {
				line = comment.ReplaceAllString(line, "")
			}
			if line = strings.TrimSpace(line); line != "" {
				add(line)
			}
			line = ""
		} else if h := heading.FindStringSubmatch(line); h != nil {
			add("heading " + h[1])
			r.anchors["#"+anchor(h[2])] = true
		} else if item.MatchString(line) {
			add("list item")
		} else if strings.HasPrefix(line, "|") {
			add("table row")
			for _, c := range tableCommand.FindAllStringSubmatch(line, -1) {
				add(c[1])
			}
		}
		prose = append(prose, line)
	}
	r.steps = append(r.steps, said{len(prose), "the end"}) // so that the longer differs too
	// Code in the text may go over the end of a line.
	text := strings.Join(prose, "\n")
	find := func(what *regexp.Regexp) (all []said) {
		for _, at := range what.FindAllStringSubmatchIndex(text, -1) {
			for g := 2; g < len(at); g += 2 {
				if at[g] >= 0 {
					words := strings.Fields(text[at[g]:at[g+1]])
					all = append(all, said{1 + strings.Count(text[:at[g]], "\n"), strings.Join(words, " ")})
				}
			}
		}
		return all
	}
	r.names, r.links = find(codeSpan), find(link)
	return r
}

func anchor(heading string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == ' ':
			return '-'
		case c == '-', c == '_', unicode.IsLetter(c), unicode.IsNumber(c):
			return unicode.ToLower(c)
		}
		return -1
	}, heading)
}

// differences tells where b says other than a: the first step that differs, and
// each name and link that only one of them has.
func differences(a, b readme) (all []string) {
	for i := range min(len(a.steps), len(b.steps)) {
		if x, y := a.steps[i], b.steps[i]; x.text != y.text {
			all = append(all, fmt.Sprintf("%s:%d has %#q, and there %s:%d has %#q", a.name, x.line, x.text, b.name, y.line, y.text))
			break
		}
	}
	missing := func(name string, these, those []said) {
		has := map[string]bool{a.name: true, b.name: true} // each leads to the other
		for _, s := range those {
			has[s.text] = true
		}
		for _, s := range these {
			if !has[s.text] && !strings.HasPrefix(s.text, "#") {
				all = append(all, fmt.Sprintf("%s:%d has %#q, which the other has not", name, s.line, s.text))
			}
		}
	}
	missing(a.name, a.names, b.names)
	missing(b.name, b.names, a.names)
	missing(a.name, a.links, b.links)
	missing(b.name, b.links, a.links)
	return all
}

func readmes(t *testing.T) (all []readme) {
	for _, name := range []string{"README.md", "README.zh-CN.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parseReadme(name, string(text)))
	}
	return all
}

func TestREADMESameInEachLanguage(t *testing.T) {
	r := readmes(t)
	for _, d := range differences(r[0], r[1]) {
		t.Error(d)
	}
}

func TestREADMELinks(t *testing.T) {
	for _, r := range readmes(t) {
		for _, l := range r.links {
			if strings.HasPrefix(l.text, "#") {
				if !r.anchors[l.text] {
					t.Errorf("%s:%d: no heading for %s", r.name, l.line, l.text)
				}
			} else if !strings.Contains(l.text, "://") {
				path, _, _ := strings.Cut(l.text, "#")
				if _, err := os.Stat(path); err != nil {
					t.Errorf("%s:%d: %v", r.name, l.line, err)
				}
			}
		}
	}
}

// The flags that a README names are those that the server and the planner tell of.
func TestREADMEFlags(t *testing.T) {
	var help bytes.Buffer
	if _, err := server.ParseConfig([]string{"-h"}, func(string) string { return "" }, "", &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	if err := plan.Run([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	known := map[string]bool{"-h": true}
	for _, f := range ownFlag.FindAllString(help.String(), -1) {
		known[strings.TrimSpace(f)] = true
	}
	for _, r := range readmes(t) {
		for _, s := range slices.Concat(r.steps, r.names) {
			_, args, _ := strings.Cut(s.text, "go run main.go ")
			if strings.HasPrefix(s.text, "-") {
				args = s.text
			}
			for _, word := range strings.Fields(args) {
				if strings.HasPrefix(word, "-") && !known[word] {
					t.Errorf("%s:%d: no flag %s in %q", r.name, s.line, word, s.text)
				}
			}
		}
	}
}
