package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// tree returns the paths of all files below dir, and their contents.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		found[filepath.ToSlash(name)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func open(t *testing.T, path string) *Folder {
	t.Helper()
	f, err := OpenFolder(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.root.Close() })
	return f
}

func TestNoNameLeadsOutOfTheFolder(t *testing.T) {
	outside := t.TempDir()
	f := open(t, filepath.Join(outside, "in", "folder"))
	if err := os.Symlink(outside, filepath.Join(outside, "in", "folder", "ln")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "a", "ab", "..", "../", "../x", "../../x", "..x", "/x/", "/etc/x", "ab/../../x", "ab/../../../x", "./../x", "lnx", "ln/../x", "abc\x00"} {
		if err := f.Put(t.Context(), name, []byte("x")); err == nil {
			t.Errorf("name %q is stored; want an error", name)
		}
	}
	for path := range tree(t, outside) {
		t.Errorf("unexpected file %s", path)
	}
}

func TestPutFromManySides(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	const n = 500
	want := map[string]string{}
	var all sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("%02d%d", i%7, i)
		want[name[:2]+"/"+name] = fmt.Sprint(i)
		all.Go(func() {
			if err := f.Put(t.Context(), name, fmt.Append(nil, i)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	got := tree(t, dir)
	for path, text := range want {
		if got[path] != text {
			t.Errorf("%s has %q; want %q", path, got[path], text)
		}
		delete(got, path)
	}
	if len(got) > 0 {
		t.Errorf("unexpected files: %v", got)
	}
}

func TestFileAppearsWhole(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	data := make([]byte, 4<<20)
	const n = 30
	path := func(i int) string { return filepath.Join(dir, "ab", fmt.Sprintf("ab%d", i)) }
	go func() {
		for i := range n {
			if err := f.Put(t.Context(), filepath.Base(path(i)), data); err != nil {
				t.Error(err)
			}
		}
	}()
	late := time.Now().Add(30 * time.Second)
	for i := range n {
		info, err := os.Stat(path(i))
		for err != nil && time.Now().Before(late) {
			info, err = os.Stat(path(i))
		}
		if err != nil || info.Size() != int64(len(data)) {
			t.Fatalf("file %d: %v, %v; want it to appear complete", i, info, err)
		}
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "ab", "abc", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(t.Context(), "abc", []byte("x")); err == nil {
		t.Error("stored; want an error")
	}
	if got := tree(t, dir); len(got) > 0 {
		t.Errorf("unexpected files %v", got)
	}
}

func TestOnlyTheOwnerReads(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "payloads")
	f := open(t, dir)
	if err := f.Put(t.Context(), "abc", []byte("x")); err != nil {
		t.Fatal(err)
	}
	var modes []string
	for _, path := range []string{dir, filepath.Join(dir, "ab"), filepath.Join(dir, "ab", "abc")} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		modes = append(modes, info.Mode().String())
	}
	if want := []string{"drwx------", "drwx------", "-rw-------"}; !slices.Equal(modes, want) {
		t.Errorf("modes %s; want %s", strings.Join(modes, " "), strings.Join(want, " "))
	}
}

func TestFolderThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), file, ""); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v; want one that names %s", err, file)
	}
}
