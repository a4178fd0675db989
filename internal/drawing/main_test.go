package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The drawings of the documentation are what their texts say.
func TestDrawings(t *testing.T) {
	texts, err := filepath.Glob("../../docs/drawings/*.txt")
	if err != nil || len(texts) != 3 {
		t.Fatalf("%q, %v; want three texts", texts, err)
	}
	for _, path := range texts {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		svg, err := draw(string(text))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		wellFormed(t, path, svg)
		drawn, err := os.ReadFile(strings.TrimSuffix(path, ".txt") + ".svg")
		if err != nil || !bytes.Equal(drawn, svg) {
			t.Errorf("%s has changed since it was drawn, %v; want make drawings", path, err)
		}
	}
}

func wellFormed(t *testing.T, path string, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

func TestDraw(t *testing.T) {
	svg, err := draw("# a comment\nsize 200 100\nbox a 0 0 40 20 plain <a> | b\nbox b 100 50 40 20 warm c\narrow a.r b.l to & fro\narrow a.b@25 b.l\n")
	if err != nil {
		t.Fatal(err)
	}
	wellFormed(t, "the text", svg)
	for _, want := range []string{
		`viewBox="0 0 200 100"`, "&lt;a&gt;", "to &amp; fro",
		`d="M40 10L70 10L70 60L100 60"`, // with two corners
		`d="M10 20L10 60L100 60"`,       // with one
	} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
}

func TestDrawErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "empty",
		"box a 0 0 1 1 plain x":           "size first",
		"size 1 1\nsize 1 1":              "size first",
		"size 1":                          "line 1",
		"size 1 1\ncircle 1 1":            "want size, title",
		"size 1 1\ntext 1 x":              "X Y TEXT",
		"size 1 1\nbox a 0 0 1 1 red x":   "style red",
		"size 1 1\nbox a 0 0 1 x plain x": "line 2",
		"size 1 1\nbox a 0 0 1 1 plain":   "NAME X Y",
		"size 1 1\narrow a.l b.r":         "no such box",
		"size 1 1\nbox a 0 0 1 1 plain x\nbox a 0 0 1 1 plain x": "already",
		"size 1 1\nbox a 0 0 1 1 plain x\narrow a.l a.m":         "want NAME.l",
		"size 1 1\nbox a 0 0 1 1 plain x\narrow a.l a.r@x":       "a.r@x",
	} {
		if _, err := draw(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
}
