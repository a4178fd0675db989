package wal

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	gosync "sync"
	"testing"
	"time"
)

// A keeper is as the store: it decides under one lock which records are needed.
type keeper struct {
	mu    gosync.Mutex
	log   *Log
	next  int
	alive map[string]bool
}

// add appends a record, and forgets the one that is old.
func (k *keeper) add(old int, size int, done func(error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := fmt.Sprint(k.next, " ", strings.Repeat("x", size))
	k.next++
	k.alive[r] = true
	for r := range k.alive {
		if n, _ := strconv.Atoi(r[:strings.IndexByte(r, ' ')]); n <= k.next-old {
			delete(k.alive, r)
		}
	}
	k.log.Append([]byte(r), done)
}

func (k *keeper) copyIfAlive(r []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.alive[string(r)] {
		k.log.Append(r, nil)
	}
}

// While records come and are forgotten, Clean keeps the log small and loses nothing
// that is needed.
func TestClean(t *testing.T) {
	for _, sync := range []bool{true, false} {
		t.Run(fmt.Sprint("sync ", sync), func(t *testing.T) {
			l := open(t, t.TempDir(), sync)
			replay(t, l)
			k := &keeper{log: l, alive: make(map[string]bool)}
			stop, freed := make(chan struct{}), int64(0)
			var cleaner gosync.WaitGroup
			cleaner.Go(func() { freed = cleanUntil(t, l, k, stop) })
			end := gosync.OnceFunc(func() { close(stop); cleaner.Wait() })
			t.Cleanup(end)
			addMany(t, k)
			end()
			if s := l.Stats(); freed < 5<<20 || s.Bytes > most {
				t.Errorf("%d bytes freed, %d left in %d messages", freed, s.Bytes, s.Messages)
			}
			found := map[string]bool{}
			for _, r := range reopened(t, l) {
				found[r] = true
			}
			for r := range k.alive {
				if !found[r] {
					t.Errorf("%.10q is lost", r)
				}
			}
			if len(found) == k.next {
				t.Error("nothing was deleted")
			}
		})
	}
}

// addMany appends 3000 records, of which the last 50 are needed.
func addMany(t *testing.T, k *keeper) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		acks := make(chan error, 1)
		size := 1000 + random.IntN(2000)
		if random.IntN(100) == 0 {
			size = 100_000 // in parts
		}
		k.add(50, size, func(err error) { acks <- err })
		await(t, acks)
		awaitRoom(t, k.log)
	}
}

// most is how large the logs of the tests may become before their appends wait.
const most = 3 << 20

// awaitRoom waits until Clean has made the log small enough.
func awaitRoom(t *testing.T, l *Log) {
	for late := time.Now().Add(limit); l.Stats().Bytes > most; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the log does not become smaller")
		}
	}
}

// cleanUntil cleans again and again while the log is large, and returns what was
// freed.
func cleanUntil(t *testing.T, l *Log, k *keeper, stop <-chan struct{}) (freed int64) {
	for {
		select {
		case <-stop:
			return freed
		case <-time.After(time.Millisecond):
		}
		if l.Stats().Bytes < 500_000 {
			continue
		}
		n, err := l.Clean(t.Context(), 300_000, k.copyIfAlive)
		if err != nil {
			t.Error(err)
		}
		freed += n
	}
}

// A copy stands behind what was appended before it was made, so the last record of a
// thing is its state. A pass ends where the log ended when it began.
func TestCleanOrder(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	for i := range 6 { // six messages
		write(t, l, fmt.Sprint("a", i))
	}
	var seen []string
	keep := func(r []byte) {
		if len(seen) == 0 {
			l.Append([]byte("between"), nil)
		}
		seen = append(seen, string(r))
		l.Append(append([]byte("copy of "), r...), nil)
	}
	before := l.Stats().Bytes
	freed, err := l.Clean(t.Context(), 1, keep) // one message at least
	if err != nil || freed <= 0 || freed >= before {
		t.Fatalf("freed %d of %d bytes: %v", freed, before, err)
	}
	same(t, seen, []string{"a0"})
	if _, err := l.Clean(t.Context(), 1<<30, keep); err != nil {
		t.Fatal(err)
	}
	same(t, seen, []string{"a0", "a1", "a2", "a3", "a4", "a5"}) // and no copy
	want := []string{"between", "copy of a0", "copy of a1", "copy of a2", "copy of a3", "copy of a4", "copy of a5"}
	if n := l.Stats().Records; n != 7 {
		t.Errorf("%d records in Stats; want 7", n)
	}
	same(t, reopened(t, l), want)
}

// A record in parts goes as a whole.
func TestCleanParts(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	long := strings.Repeat("long", 200_000)
	write(t, l, long, "short")
	messages := l.Stats().Messages
	var seen []string
	freed, err := l.Clean(t.Context(), 1, func(r []byte) { seen = append(seen, string(r)) })
	if err != nil || freed < int64(len(long)) {
		t.Errorf("%d bytes freed: %v", freed, err)
	}
	same(t, seen, []string{long})
	if n := l.Stats().Messages; messages != 5 || n != 2 {
		t.Errorf("%d messages, then %d; want 5, then 2", messages, n)
	}
	same(t, reopened(t, l), []string{"short"})
}

// A pass that has ended within the parts of a record goes on when all of them are
// there.
func TestCleanPassEndsWithinParts(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	long := strings.Repeat("long", 200_000)
	write(t, l, long, "short")
	l.passEnd = 2
	var seen []string
	if _, err := l.Clean(t.Context(), 1, func(r []byte) { seen = append(seen, string(r)) }); err != nil {
		t.Fatal(err)
	}
	same(t, seen, []string{long})
	same(t, reopened(t, l), []string{"short"})
}

// Nothing is deleted before the copies are written.
func TestCleanWaitsForCopies(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, "needed")
	begun, release := make(chan struct{}), make(chan struct{})
	l.Append([]byte("first"), func(error) { close(begun); <-release })
	<-begun
	cleaned := make(chan error)
	go func() {
		_, err := l.Clean(t.Context(), 1, func(r []byte) { l.Append(r, nil) })
		cleaned <- err
	}()
	for late := time.Now().Add(limit); !marked(l); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("Clean writes no mark")
		}
	}
	n, _ := l.now()
	s, err := n.state(t.Context())
	if err != nil || s.firstStored != 1 || s.at.first != 0 {
		t.Errorf("%v; the log begins with message %d while the copy waits; want 1", err, s.firstStored)
	}
	close(release)
	await(t, cleaned)
	if s, err = n.state(t.Context()); err != nil || s.firstStored != 2 || s.at.first != 2 {
		t.Errorf("%v; the log begins with message %d; want 2", err, s.firstStored)
	}
	same(t, reopened(t, l), []string{"first", "needed"})
}

// marked reports whether a mark waits behind another pack.
func marked(l *Log) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) == 2 && l.queue[1].kind == kindMark
}

// A log from which everything was deleted goes on, and its sequences too.
func TestCleanAll(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	if freed, err := l.Clean(t.Context(), 1<<30, func([]byte) {}); freed != 0 || err != nil {
		t.Errorf("an empty log: %d, %v", freed, err)
	}
	write(t, l, numbered(10)...)
	for range 3 {
		if _, err := l.Clean(t.Context(), 1<<30, func([]byte) {}); err != nil {
			t.Fatal(err)
		}
	}
	closeLog(t, l)
	l = open(t, l.options.Dir, true)
	same(t, replay(t, l), nil)
	write(t, l, "next")
	same(t, reopened(t, l), []string{"next"})
}

// The end of the context deletes nothing.
func TestCleanCanceled(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, numbered(10)...)
	ctx, cancel := withCancel(t)
	_, err := l.Clean(ctx, 1<<30, func([]byte) { cancel() })
	if err == nil {
		t.Error("no error")
	}
	same(t, reopened(t, l), numbered(10))
}

// A crash after the mark and before the end of the deletion: the head does not come
// back, and the next start deletes it.
func TestDeletionInterrupted(t *testing.T) {
	l := open(t, t.TempDir(), true)
	dir := l.options.Dir
	replay(t, l)
	for i := range 5 {
		write(t, l, fmt.Sprint("a", i))
	}
	closeLog(t, l)
	raw(t, dir, sealed(header{kind: kindMark, synced: true, prev: 5, first: 4}, ""))
	s, err := Check(t.Context(), dir, nil)
	if err != nil || s.Records != 2 || s.FirstSequence != 4 || len(s.Problems) > 0 {
		t.Errorf("Check: %v, %+v", err, s)
	}
	l = open(t, dir, true)
	same(t, replay(t, l), []string{"a3", "a4"})
	if n := l.Stats().Messages; n != 3 {
		t.Errorf("%d messages; want 3", n)
	}
	write(t, l, "next")
	same(t, reopened(t, l), []string{"a3", "a4", "next"})

	// Had the server deleted what it should not, that would not go unnoticed.
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, err := start(t.Context(), f, options(t, dir, true), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.purge(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	n.stop()
	f.close()
	l = open(t, dir, true)
	if err := l.Replay(t.Context(), func([]byte) error { return nil }); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("Replay of a log without its head: %v", err)
	}
}
