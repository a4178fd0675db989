package main

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A slowFile needs a second for a sync.
type slowFile struct {
	mu      sync.Mutex
	written []byte
	onDisk  []byte // what had been written when the last sync began
	syncs   int
	fails   error
}

func (f *slowFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = append(f.written, p...)
	return len(p), nil
}

func (f *slowFile) Sync() error {
	f.mu.Lock()
	began := f.written
	f.mu.Unlock()
	time.Sleep(time.Second)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	if f.fails == nil {
		f.onDisk = began
	}
	return f.fails
}

func (f *slowFile) Close() error { return nil }

func (f *slowFile) disk() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.onDisk
}

// A record is on disk when append returns, and one sync is for all that have come while
// the one before ran.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := &slowFile{}
		l := newGroupLog(file)
		var appends sync.WaitGroup
		record := func(text string) {
			appends.Go(func() {
				if err := l.append([]byte(text)); err != nil {
					t.Error(err)
				}
				if !bytes.Contains(file.disk(), []byte(text)) {
					t.Errorf("append of %q returned before it was on disk", text)
				}
			})
		}
		begin := time.Now()
		record("first")
		time.Sleep(time.Second / 2) // its sync runs
		for i := range 10 {
			record("record " + string(rune('0'+i)))
		}
		then := false
		l.appendThen([]byte("last"), func() { then = bytes.Contains(file.disk(), []byte("last")) })
		appends.Wait()
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("11 appends took %v; want 2s, a sync for the first and one for the others", took)
		}
		if err := l.close(); err != nil {
			t.Error(err)
		}
		if file.syncs != 2 || !then || !bytes.Equal(file.written, file.onDisk) {
			t.Errorf("%d syncs, function called when on disk: %v, all on disk: %v; want 2, true, true", file.syncs, then, bytes.Equal(file.written, file.onDisk))
		}
	})
}

// After the first error nothing is said to be on disk any more.
func TestGroupCommitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := errors.New("no room")
		file := &slowFile{fails: first}
		l := newGroupLog(file)
		if err := l.append([]byte("record")); err != first {
			t.Errorf("error %v; want %v", err, first)
		}
		file.fails = nil // what was not written leaves a hole
		if err := l.append([]byte("record")); err != first {
			t.Errorf("error %v after the first; want that one again", err)
		}
		l.appendThen([]byte("record"), func() { t.Error("a record is said to be on disk") })
		if err := l.close(); err != nil || file.syncs != 1 {
			t.Errorf("%d syncs, error %v; want 1", file.syncs, err)
		}
	})
}

// A 202 and a result are on disk when a client sees them.
func TestPlainPromises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := &slowFile{}
		s := servePlain(newGroupLog(file), 2)
		p := &recorder{s.handler}
		var clients sync.WaitGroup
		for range 5 {
			clients.Go(func() {
				w := p.do("POST", "/work", body)
				location := w.Header().Get("Location")
				id := strings.TrimPrefix(location, "/jobs/")
				if w.Code != 202 || !bytes.Contains(file.disk(), []byte("a"+id+body)) {
					t.Errorf("POST is answered with %d, and the job is not on disk", w.Code)
				}
				w = p.do("GET", location+"/response", "")
				if w.Code != 200 || w.Body.String() != outcome || !bytes.Contains(file.disk(), []byte("e"+id+outcome)) {
					t.Errorf("GET is answered with %d %q; want 200 %q, and that on disk", w.Code, w.Body, outcome)
				}
			})
		}
		clients.Wait()
		if w := p.do("GET", "/jobs/other/response", ""); w.Code != 404 {
			t.Errorf("an unknown job is answered with %d; want 404", w.Code)
		}
		if err := s.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
