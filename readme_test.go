package holdfast_test

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"holdfast/internal/server"
	"holdfast/plan"
)

// A said is something that a page says, and where.
type said struct {
	line int
	text string
}

// A page is what is read of a page of the documentation. But for the blocks, it is the
// same in every language.
type page struct {
	name    string
	words   int
	steps   []said          // in order: headings by level, items, rows, commands in tables, lines of code without comments
	names   []said          // code in the text, without its backquotes
	links   []said          // what links and pictures lead to
	blocks  []block         // of code, and commands in tables
	anchors map[string]bool // what a link to the page may lead to, as GitHub forms it
}

// A block is code on a page.
type block struct {
	said
	language string // of its fence, or "table"
}

// translations are the pages that are there in two languages.
var translations = [][2]string{{"README.md", "README.zh-CN.md"}, {"docs/idea.md", "docs/idea.zh-CN.md"}}

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

func parsePage(name, markdown string) page {
	p := page{name: name, words: len(strings.Fields(markdown)), anchors: map[string]bool{}}
	var prose []string
	var fenced *block
	for i, line := range strings.Split(markdown, "\n") {
		add := func(text string) { p.steps = append(p.steps, said{i + 1, text}) }
		if info, ok := strings.CutPrefix(line, "```"); ok {
			add("```" + info)
			if fenced == nil {
				fenced = &block{said{i + 1, ""}, info}
			} else {
				p.blocks, fenced = append(p.blocks, *fenced), nil
			}
			line = ""
		} else if fenced != nil {
			fenced.text += line + "\n"
			if comment := comments[fenced.language]; comment != nil {
				line = comment.ReplaceAllString(line, "")
			}
			if line = strings.TrimSpace(line); line != "" {
				add(line)
			}
			line = ""
		} else if h := heading.FindStringSubmatch(line); h != nil {
			add("heading " + h[1])
			p.anchors[anchor(h[2])] = true
		} else if item.MatchString(line) {
			add("list item")
		} else if strings.HasPrefix(line, "|") {
			p.row(i+1, line)
		}
		prose = append(prose, line)
	}
	p.steps = append(p.steps, said{len(prose), "the end"}) // so that the longer differs too
	p.names, p.links = find(codeSpan, prose), find(link, prose)
	return p
}

// row adds a row of a table, and the commands in it.
func (p *page) row(line int, text string) {
	p.steps = append(p.steps, said{line, "table row"})
	for _, c := range tableCommand.FindAllStringSubmatch(text, -1) {
		p.steps = append(p.steps, said{line, c[1]})
		p.blocks = append(p.blocks, block{said{line, c[1]}, "table"})
	}
}

// find returns what the groups of an expression match. Code in the text, and the text of
// a link, may go over the end of a line.
func find(what *regexp.Regexp, lines []string) (all []said) {
	text := strings.Join(lines, "\n")
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
// each name and link that only one of them has. A link to a page may lead to it in
// either language.
func differences(a, b page) (all []string) {
	for i := range min(len(a.steps), len(b.steps)) {
		if x, y := a.steps[i], b.steps[i]; x.text != y.text {
			all = append(all, fmt.Sprintf("%s:%d has %#q, and there %s:%d has %#q", a.name, x.line, x.text, b.name, y.line, y.text))
			break
		}
	}
	in := func(text string) string { return strings.Replace(text, ".zh-CN.md", ".md", 1) }
	missing := func(name string, these, those []said) {
		has := map[string]bool{}
		for _, s := range those {
			has[in(s.text)] = true
		}
		for _, s := range these {
			if !has[in(s.text)] && !strings.HasPrefix(s.text, "#") {
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

func readPage(t *testing.T, name string) page {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return parsePage(name, string(text))
}

// manual returns the README and the pages of docs, in every language.
func manual(t *testing.T) (all []page) {
	t.Helper()
	names, err := filepath.Glob("docs/*.md")
	if err != nil || len(names) < 8 {
		t.Fatalf("%q, %v; want at least eight pages in docs", names, err)
	}
	for _, name := range append(names, "README.md", "README.zh-CN.md") {
		all = append(all, readPage(t, filepath.ToSlash(name)))
	}
	return all
}

func TestREADMESameInEachLanguage(t *testing.T) {
	for _, pair := range translations {
		for _, d := range differences(readPage(t, pair[0]), readPage(t, pair[1])) {
			t.Error(d)
		}
	}
}

// A README is read to its end if it is short.
func TestREADMELength(t *testing.T) {
	if p := readPage(t, "README.md"); p.words > 1300 {
		t.Errorf("%s has %d words; want at most 1300", p.name, p.words)
	}
}

// Links between all pages of the repository lead to a file, and to a heading in it.
func TestREADMELinks(t *testing.T) {
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == ".git" || d.Name() == "node_modules") {
			return cmp.Or(err, filepath.SkipDir)
		}
		if filepath.Ext(name) == ".md" {
			checkLinks(t, readPage(t, filepath.ToSlash(name)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkLinks(t *testing.T, p page) {
	for _, l := range p.links {
		if strings.Contains(l.text, "://") {
			continue
		}
		target, to, _ := strings.Cut(l.text, "#")
		name, anchors := p.name, p.anchors
		if target != "" {
			name, anchors = path.Join(path.Dir(p.name), target), nil
		}
		if _, err := os.Stat(filepath.FromSlash(name)); err != nil {
			t.Errorf("%s:%d: %v", p.name, l.line, err)
			continue
		}
		if anchors == nil && path.Ext(name) == ".md" {
			anchors = readPage(t, name).anchors
		}
		if to != "" && !anchors[to] {
			t.Errorf("%s:%d: %s has no heading for #%s", p.name, l.line, name, to)
		}
	}
}

// flagsOf returns the flags that the server and the planner tell of.
func flagsOf(t *testing.T) (ofServer, all map[string]bool) {
	t.Helper()
	var help bytes.Buffer
	if _, err := server.ParseDurableConfig([]string{"-h"}, func(string) string { return "" }, "", &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	ofServer, all = map[string]bool{}, map[string]bool{"-h": true}
	for _, f := range ownFlag.FindAllStringSubmatch(help.String(), -1) {
		ofServer[f[1]] = true
	}
	if err := plan.Run([]string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, f := range ownFlag.FindAllStringSubmatch(help.String(), -1) {
		all[f[1]] = true
	}
	return ofServer, all
}

// The flags that the pages name are there, and those that are there are named.
func TestREADMEFlags(t *testing.T) {
	unnamed, known := flagsOf(t)
	for _, p := range manual(t) {
		for _, s := range slices.Concat(p.steps, p.names) {
			_, args, _ := strings.Cut(s.text, "go run main.go ")
			if strings.HasPrefix(s.text, "-") {
				args = s.text
			}
			for _, word := range strings.Fields(args) {
				word, _, _ = strings.Cut(word, "=")
				if strings.HasPrefix(word, "-") && !known[word] {
					t.Errorf("%s:%d: no flag %s in %q", p.name, s.line, word, s.text)
				}
				delete(unnamed, word)
			}
		}
	}
	for name := range unnamed {
		t.Errorf("no page names the flag %s; want it in README.md or docs", name)
	}
}

// The targets that the pages tell make to make are there.
func TestREADMETargets(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range manual(t) {
		for _, s := range slices.Concat(p.steps, p.names) {
			if f := strings.Fields(s.text); len(f) > 1 && f[0] == "make" && !bytes.Contains(makefile, []byte("\n"+f[1]+":")) {
				t.Errorf("%s:%d: no target for %q", p.name, s.line, s.text)
			}
		}
	}
}

// The idea fits into sixty lines.
func TestREADMEIdea(t *testing.T) {
	for _, b := range readPage(t, "docs/idea.md").blocks {
		if b.language == "go" && strings.Contains(b.text, "package main") {
			if n := strings.Count(b.text, "\n"); n > 60 {
				t.Errorf("docs/idea.md:%d: %d lines; want at most 60", b.line, n)
			}
			return
		}
	}
	t.Error("docs/idea.md has no program")
}
