package e2e

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// release runs make release for one platform into a folder, perhaps with other variables
// of the Makefile.
func release(t *testing.T, dist, platform string, variables ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(service(t, "make"), append([]string{
		"-C", "..", "release", "VERSION=v1.2.3-test", "DIST=" + dist, "PLATFORMS=" + platform}, variables...)...)
	// The tests may run under make, whose variables are not meant for this one.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "MAKE") || strings.HasPrefix(s, "MFLAGS") })
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A release has a binary that is stamped, says what is in it, and has the sum that is
// told. The binary is, byte for byte, the container's.
func TestRelease(t *testing.T) {
	dist := t.TempDir()
	const name = "holdfast-v1.2.3-test-linux-amd64"
	if out, err := release(t, dist, "linux/amd64"); err != nil {
		t.Fatalf("make release: %v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(filepath.Join(dist, name))
	if err != nil {
		t.Fatal(err)
	}
	bill, err := os.ReadFile(filepath.Join(dist, name+".sbom.txt"))
	if err != nil || !strings.HasPrefix(string(bill), name+": "+info.GoVersion+"\n") || !strings.Contains(string(bill), "\tbuild\tGOOS=linux\n") {
		t.Errorf("the bill of materials is %q, %v", bill, err)
	}
	var want strings.Builder
	for _, file := range []string{"LICENSE", name, name + ".sbom.txt"} {
		text, err := os.ReadFile(filepath.Join(dist, file))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&want, "%x  %s\n", sha256.Sum256(text), file)
	}
	if sums, err := os.ReadFile(filepath.Join(dist, "SHA256SUMS")); err != nil || string(sums) != want.String() {
		t.Errorf("SHA256SUMS is\n%s, %v, want\n%s", sums, err, want.String())
	}

	container := filepath.Join(t.TempDir(), "holdfast")
	readImage(t).binary(t, "amd64", container)
	a, err := os.ReadFile(filepath.Join(dist, name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(container)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("the container's binary has other bytes than the release's, %v", err)
	}
}

// A build whose bytes depend on its folder is none to publish.
func TestReleaseNotReproducible(t *testing.T) {
	if out, err := release(t, t.TempDir(), "linux/amd64", "RELEASE=go build -buildvcs=false"); err == nil || !strings.Contains(out, "differ") {
		t.Errorf("make release without -trimpath: %v\n%s", err, out)
	}
}
