package main

import (
	"strings"
	"testing"
)

const to = "github.com/you/queue"

var files = []string{"go.mod", "plan/plan.go", "internal/counts/counts.go", "contrib/prometheus/collector.go", "cmd/holdfast/main.go"}

// Each line has the path as §. What is left of it after the rewriting is no path.
func TestText(t *testing.T) {
	p := newPaths("holdfast", to, files)
	for _, test := range []struct{ name, text string }{
		{"go.mod", "module §\n\ngo 1.26\n"},
		{"bench/go.mod", "module §/contrib/prometheus\n\nrequire (\n\t§ v0.0.0\n)\n\nreplace § => ..\n"},
		{"bench/go.mod", "require § v0.0.0 // indirect\n"},
		{"a.go", "package a\n\nimport \"§\"\n"},
		{"a.go", "package a\n\nimport (\n\t\"fmt\"\n\n\t\"§\"\n\t. \"§\" // why\n\tprom \"§/contrib/prometheus\"\n)\n"},
		{"a.go", "package a\n\nvar list = command(\"go\", \"list\", \"§/internal/counts\")\n"},
		{"a.go", "package a\n\nvar names = []string{\n\t\"holdfast\",\n}\n"},
		{"a.go", "package holdfast // holdfast: it is at bin/holdfast, holdfast/s\n"},
		{"Makefile", "\ttest \"$$(go list -m all)\" = § # bin/holdfast\n"},
		{"Makefile", "\tgo build -ldflags \"-X §/internal/counts.x=1\" -o holdfast ./cmd/holdfast\n"},
		{"README.md", "go mod edit -require §@v0.0.0 -replace §=../holdfast\n"},
		{"README.md", "\t-replace §/contrib/prometheus=../holdfast/contrib/prometheus\n"},
		{"README.md", "`go doc -all §` and `go doc §/plan.Plan`; `holdfast.Block`, holdfast/ and `§/plan`.\n"},
		{"README.md", "make module PATH=github.com/me/holdfast, git clone https://example.org/holdfast/plan\n"},
		{"README.md", "\t\"log\"\n\n\t\"§\"\n"},
		{"page.json", "  \"holdfast\"\n"},
	} {
		before, want := strings.ReplaceAll(test.text, "§", "holdfast"), strings.ReplaceAll(test.text, "§", to)
		if got, err := p.text(test.name, []byte(before)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, want)
		}
	}
}

// A path that was written once can be changed again, and gives way in full.
func TestTextAgain(t *testing.T) {
	const text = "\t§ v0.0.0\nmodule §/plan\n"
	there, err := newPaths("holdfast", to, files).text("go.mod", []byte(strings.ReplaceAll(text, "§", "holdfast")))
	if err != nil {
		t.Fatal(err)
	}
	if back, err := newPaths(to, "example.org/q", files).text("go.mod", there); err != nil || string(back) != strings.ReplaceAll(text, "§", "example.org/q") {
		t.Errorf("%q, %v", back, err)
	}
}

func TestTextSortsImports(t *testing.T) {
	p := newPaths("holdfast", "a.example/q", files)
	got, err := p.text("a.go", []byte("package a\n\nimport (\n\t\"b.example/x\"\n\t\"holdfast\"\n)\n"))
	if want := "package a\n\nimport (\n\t\"a.example/q\"\n\t\"b.example/x\"\n)\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

func TestValid(t *testing.T) {
	for path, want := range map[string]bool{
		"github.com/you/holdfast":   true,
		"git.example.org/a.b/c~d":   true,
		"":                          false,
		"holdfast":                  false,
		"github.com":                false,
		"github.com/":               false,
		"github.com/you/":           false,
		"github.com/../x":           false,
		"/usr/bin:/bin":             false,
		"github.com/you/hold fast":  false,
		"https://github.com/you/hf": false,
	} {
		if got := valid.MatchString(path); got != want {
			t.Errorf("%q: %v, want %v", path, got, want)
		}
	}
}
