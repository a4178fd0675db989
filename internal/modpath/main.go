// Modpath writes another module path into every file of the tree: what make
// module PATH=github.com/you/holdfast runs. It is how someone publishes Holdfast
// under an address of their own.
//
// The package keeps its name, and so does the folder that the READMEs clone into.
// A nested module that is to be published too then needs the root's version in its
// go.mod, in the place of v0.0.0, since those who import it do not see its replace.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// valid is stricter than Go is: a path that go get can fetch begins with a host.
var valid = regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)+(/[A-Za-z0-9][A-Za-z0-9._~-]*)+$`)

func main() {
	if len(os.Args) != 2 || !valid.MatchString(os.Args[1]) {
		fmt.Fprintf(os.Stderr, "modpath: the path is %q; want one such as github.com/you/holdfast\n", os.Args[1:])
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "modpath:", err)
		os.Exit(1)
	}
}

// run rewrites the files that git knows below the root of the module.
func run(path string) error {
	old, err := output("go", "list", "-m")
	if err != nil {
		return err
	}
	dir, err := output("go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	list, err := output("git", "ls-files", "-z")
	if err != nil {
		return err
	}
	files := strings.FieldsFunc(list, func(c rune) bool { return c == 0 })
	p := newPaths(old, path, files)
	for _, name := range files {
		if err := p.file(name); err != nil {
			return err
		}
	}
	fmt.Printf("%s is %s\n", old, path)
	return nil
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%v: %w", cmd, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// A paths finds the old path and puts the new one in its place. The old one may be
// a plain word, which also names the package, a binary and a folder. So it counts
// as a path only where one must stand.
type paths struct {
	path     string
	packages *regexp.Regexp // one of the module's folders follows, in any file
	imports  *regexp.Regexp // an import of the root package
	modules  *regexp.Regexp // a line of a go.mod
	commands *regexp.Regexp // a line with a command that takes a module's path
	argument *regexp.Regexp // the path in such a line
}

func newPaths(old, path string, files []string) *paths {
	folders := map[string]bool{}
	var names []string
	for _, name := range files {
		if folder, _, below := strings.Cut(name, "/"); below && !folders[folder] {
			folders[folder] = true
			names = append(names, regexp.QuoteMeta(folder))
		}
	}
	old = regexp.QuoteMeta(old)
	return &paths{
		path:     path,
		packages: regexp.MustCompile(`(^|[^\w./~-])` + old + `(/(?:` + strings.Join(names, "|") + `)\b)`),
		imports:  regexp.MustCompile(`(?m)^(\s*(?:import\s+)?(?:[\w.]+\s+)?")` + old + `("\s*(?://.*)?)$`),
		modules:  regexp.MustCompile(`(?m)^((?:module|require|replace) |\t)` + old + `( |$)`),
		commands: regexp.MustCompile(`\bgo (?:doc|get|install|list|mod)\b`),
		argument: regexp.MustCompile(`(^|[\s"'` + "`" + `])` + old + `([@=\s"'` + "`" + `)]|$)`),
	}
}

// file rewrites one file, and formats it, since another path sorts elsewhere.
func (p *paths) file(name string) error {
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	before, err := os.ReadFile(name)
	if err != nil || bytes.IndexByte(before, 0) >= 0 {
		return err
	}
	after, err := p.text(name, before)
	if err != nil || bytes.Equal(before, after) {
		return err
	}
	if err := os.WriteFile(name, after, info.Mode()); err != nil {
		return err
	}
	if filepath.Base(name) == "go.mod" {
		_, err = output("go", "mod", "edit", "-fmt", name)
	}
	return err
}

func (p *paths) text(name string, text []byte) ([]byte, error) {
	around := []byte("${1}" + p.path + "${2}")
	text = p.packages.ReplaceAll(text, around)
	switch {
	case filepath.Base(name) == "go.mod":
		text = p.modules.ReplaceAll(text, around)
	case filepath.Ext(name) == ".go", filepath.Ext(name) == ".md":
		text = p.imports.ReplaceAll(text, around)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	for i, line := range lines {
		if p.commands.Match(line) {
			lines[i] = p.argument.ReplaceAll(line, around)
		}
	}
	text = bytes.Join(lines, nil)
	if filepath.Ext(name) != ".go" {
		return text, nil
	}
	formatted, err := format.Source(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return formatted, nil
}
