package main_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The two ways to build the server give one program, and its version is stamped.
func TestBuild(t *testing.T) {
	for _, what := range []string{".", "../../main.go"} {
		t.Run(what, func(t *testing.T) {
			binary := filepath.Join(t.TempDir(), "holdfast.exe") // a name that runs anywhere
			build := exec.Command("go", "build", "-ldflags", "-X main.version=v1.2.3-test", "-o", binary, what)
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", build, err, out)
			}
			out, err := exec.Command(binary, "-version").CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != "holdfast v1.2.3-test" {
				t.Errorf("-version prints %q, %v; want holdfast v1.2.3-test", got, err)
			}
		})
	}
}
