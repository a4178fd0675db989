package main

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// format formats the payload with a number.
const format = `{"n":%d}`

// A tally counts the contents of a store.
type tally struct {
	times   []uint8 // how often each payload is stored, at most 2
	strange int     // contents that are not exactly a payload that was sent
}

func (t *tally) add(payload string) {
	n := -1
	fmt.Sscanf(payload, format, &n)
	if n < 0 || n >= len(t.times) || payload != fmt.Sprintf(format, n) {
		t.strange++
		return
	}
	t.times[n] = min(t.times[n]+1, 2)
}

// count reads every file below folder, except incomplete ones.
func count(folder string, payloads int) (tally, error) {
	t := tally{times: make([]uint8, payloads)}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) == ".part" {
			return err
		}
		text, err := os.ReadFile(path)
		t.add(string(text))
		return err
	})
	return t, err
}

// room returns an error if a folder has no room for the given number of small files.
func room(folder string, files int) error {
	var s syscall.Statfs_t
	if err := syscall.Statfs(folder, &s); err != nil {
		return err
	}
	const reserve = 1.2 // room for the folders, and for other programs
	if need := float64(files) * reserve; s.Files > 0 && float64(s.Ffree) < need {
		return fmt.Errorf("%s has room for %d files; want %.0f, or another TMPDIR", folder, s.Ffree, need)
	}
	if have, need := float64(s.Bavail)*float64(s.Bsize), float64(files)*4096*reserve; have < need {
		return fmt.Errorf("%s has %.0f MiB; want %.0f, or another TMPDIR", folder, have/(1<<20), need/(1<<20))
	}
	return nil
}

// slowPlaces is the number of uploads that a slowStore serves at once; others wait.
const slowPlaces = 100

// A slowStore implements as much of an object store as uploads need. It counts the
// uploads but does not store them.
type slowStore struct {
	server *httptest.Server
	places chan struct{}
	upload time.Duration

	mu     sync.Mutex // protects the following field
	stored tally
}

func newSlowStore(payloads int, upload time.Duration) *slowStore {
	s := &slowStore{places: make(chan struct{}, slowPlaces), upload: upload, stored: tally{times: make([]uint8, payloads)}}
	s.server = httptest.NewServer(http.HandlerFunc(s.put))
	return s
}

func (s *slowStore) url() string { return s.server.URL + "/bucket" }

// signed matches a body that is signed in chunks: the length of the first chunk, its
// signature, and the rest.
var signed = regexp.MustCompile(`(?s)^([0-9a-f]+);chunk-signature=[0-9a-f]+\r\n(.*)$`)

func (s *slowStore) put(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if r.Method != http.MethodPut || err != nil {
		return // with 200: the client only asks whether the bucket exists
	}
	select {
	case s.places <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	late := time.After(s.upload)
	select {
	case <-late:
	case <-r.Context().Done(): // an upload that ends during its transfer is not stored
	}
	<-s.places
	if r.Context().Err() != nil {
		return
	}
	payload := string(body)
	if m := signed.FindStringSubmatch(payload); m != nil {
		size, _ := strconv.ParseUint(m[1], 16, 32)
		payload = m[2][:min(int(size), len(m[2]))]
	}
	s.mu.Lock()
	s.stored.add(payload)
	s.mu.Unlock()
	w.Header().Set("ETag", `"1"`)
}

// close stops the store and returns what was uploaded.
func (s *slowStore) close() tally {
	s.server.Close()
	return s.stored
}
