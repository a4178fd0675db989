package wal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// limit is the longest time to wait for anything.
const limit = 30 * time.Second

// A testLog shows what was logged when its test has failed.
type testLog struct {
	mu  sync.Mutex
	log bytes.Buffer
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(b)
}

func (l *testLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.String()
}

func options(t *testing.T, dir string, sync bool) Options {
	t.Helper()
	l := &testLog{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of %s:\n%s", dir, l.text())
		}
	})
	return Options{Dir: dir, Sync: sync, Logger: slog.New(slog.NewTextHandler(l, nil))}
}

// open opens a log that is closed with the test, if not before.
func open(t *testing.T, dir string, sync bool) *Log {
	t.Helper()
	l, err := Open(t.Context(), options(t, dir, sync))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		l.Close(ctx)
	})
	return l
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// replay returns the records of a log that was just opened.
func replay(t *testing.T, l *Log) []string {
	t.Helper()
	var records []string
	if err := l.Replay(t.Context(), func(r []byte) error {
		records = append(records, string(r))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return records
}

// reopened closes the log and returns its records, as the next Open finds them.
func reopened(t *testing.T, l *Log) []string {
	t.Helper()
	closeLog(t, l)
	again := open(t, l.options.Dir, l.options.Sync)
	defer closeLog(t, again)
	return replay(t, again)
}

// write appends the records and waits until the last is acknowledged.
func write(t *testing.T, l *Log, records ...string) {
	t.Helper()
	acks := make(chan error, len(records))
	for _, r := range records {
		l.Append([]byte(r), func(err error) { acks <- err })
	}
	for range records {
		await(t, acks)
	}
}

func await(t *testing.T, acks <-chan error) {
	t.Helper()
	select {
	case err := <-acks:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(limit):
		t.Fatal("no acknowledgement")
	}
}

func numbered(n int) []string {
	records := make([]string, n)
	for i := range records {
		records[i] = fmt.Sprint("record ", i)
	}
	return records
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	t.Fatalf("%d records; want %d; they differ at %d: %.40q; want %.40q", len(got), len(want), i, got[i:min(i+1, len(got))], want[i:min(i+1, len(want))])
}

// Each of many goroutines appends under one lock, as the store does. The callbacks
// come in that order, and so do the records, after Close as well.
func TestOrder(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	var mu sync.Mutex // as that of the store, which done takes
	var appended, done []string
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 100 {
				acked := make(chan error, 1)
				mu.Lock()
				r := fmt.Sprint("record ", len(appended))
				appended = append(appended, r)
				l.Append([]byte(r), func(err error) {
					mu.Lock()
					defer mu.Unlock()
					done = append(done, r)
					acked <- err
				})
				mu.Unlock()
				if err := <-acked; err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	same(t, done, appended)
	s := l.Stats()
	if s.Records != 1600 || s.Waiting != 0 || s.WaitingBytes != 0 {
		t.Errorf("%d records, %d waiting with %d bytes; want 1600, 0, 0", s.Records, s.Waiting, s.WaitingBytes)
	}
	if s.Messages > 800 {
		t.Errorf("%d messages for 1600 records of 16 goroutines; want packs", s.Messages)
	}
	same(t, reopened(t, l), appended)
}

// What is appended while a message is in flight goes into the fewest packs.
func TestGrouping(t *testing.T) {
	tests := []struct {
		name            string
		records, length int
		packs           int64
	}{
		{"by number", 1000, 10, 2},
		{"exactly full", 512, 10, 1},
		{"by size", 128, 1022, 3}, // with its length 1024 bytes; with the header only 63 fit
		{"longest", 2, maxPacked, 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := open(t, t.TempDir(), false)
			replay(t, l)
			begun, release := make(chan struct{}), make(chan struct{})
			l.Append([]byte("first"), func(error) { close(begun); <-release })
			<-begun
			before := l.Stats().Messages
			acks := make(chan error, test.records)
			for range test.records {
				l.Append(make([]byte, test.length), func(err error) { acks <- err })
			}
			close(release)
			for range test.records {
				await(t, acks)
			}
			if packs := l.Stats().Messages - before; packs != test.packs {
				t.Errorf("%d packs; want %d", packs, test.packs)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	var want []string
	for i, size := range []int{1, 64<<10 - 1, maxPacked, maxPacked + 1, 64 << 10, 64<<10 + 1, 2, 256<<10 - 1, 256 << 10, 256<<10 + 1, 8 << 20, 3} {
		r := make([]byte, size)
		for j := range r {
			r[j] = byte(i + j + j>>8)
		}
		want = append(want, string(r))
	}
	write(t, l, want...)
	same(t, reopened(t, l), want)
}

func TestLongestRecord(t *testing.T) {
	l := open(t, t.TempDir(), false)
	replay(t, l)
	long := strings.Repeat("0123456789abcdef", MaxRecord/16)
	for _, r := range []string{"", long + "x"} {
		refused := make(chan error, 1)
		l.Append([]byte(r), func(err error) { refused <- err })
		if err := <-refused; err == nil || !strings.Contains(err.Error(), "want 1 to 67108864") {
			t.Errorf("%d bytes: %v", len(r), err)
		}
	}
	write(t, l, "before", long, "behind")
	same(t, reopened(t, l), []string{"before", long, "behind"})
}

// The caller may use its memory again at once.
func TestAppendCopies(t *testing.T) {
	l := open(t, t.TempDir(), false)
	replay(t, l)
	begun, release := make(chan struct{}), make(chan struct{})
	l.Append([]byte("first"), func(error) { close(begun); <-release })
	<-begun
	short, long := []byte("short"), bytes.Repeat([]byte("long"), 50_000)
	l.Append(short, nil)
	l.Append(long, nil)
	clear(short)
	clear(long)
	close(release)
	same(t, reopened(t, l), []string{"first", "short", strings.Repeat("long", 50_000)})
}

func TestErrWhenTooMuchWaits(t *testing.T) {
	l := open(t, t.TempDir(), false)
	replay(t, l)
	begun, release := make(chan struct{}), make(chan struct{})
	l.Append([]byte("first"), func(error) { close(begun); <-release })
	<-begun
	acks := make(chan error, 65)
	for i := range 65 {
		if err := l.Err(); err != nil {
			t.Fatalf("after %d MiB: %v", i, err)
		}
		l.Append(make([]byte, 1<<20), func(err error) { acks <- err })
	}
	if err := l.Err(); err == nil || !strings.Contains(err.Error(), "wait for the disk") {
		t.Errorf("with 65 MiB waiting: %v", err)
	}
	if s := l.Stats(); s.Waiting != 65 || s.WaitingBytes != 65<<20 {
		t.Errorf("%d records with %d bytes wait; want 65 with %d", s.Waiting, s.WaitingBytes, 65<<20)
	}
	close(release)
	for range 65 {
		await(t, acks)
	}
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

// The writer may learn nothing of a write that has succeeded. The next attempt finds
// the message and does not write it again.
func TestAnswerLost(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, "one")
	n, at := l.now()
	p := newPack(nil)
	p.add([]byte("two"), nil)
	header{kind: kindPack, synced: true, prev: at.prev, count: 1, size: 4}.seal(p.message)
	if _, err := n.publish(fmt.Sprint(l.id, "-", l.serial+1), at.last, p.message, nil); err != nil {
		t.Fatal(err)
	}
	write(t, l, "two")
	write(t, l, "three")
	same(t, reopened(t, l), []string{"one", "two", "three"})
}

// A log that somebody else has written to takes nothing more.
func TestFence(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, "one")
	n, at := l.now()
	p := newPack(nil)
	p.add([]byte("other"), nil)
	header{kind: kindPack, synced: true, prev: at.prev, count: 1, size: 6}.seal(p.message)
	if _, err := n.publish("other", at.last, p.message, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{"two", "three"} {
		acks := make(chan error, 1)
		l.Append([]byte(r), func(err error) { acks <- err })
		if err := <-acks; !errors.Is(err, ErrLost) {
			t.Errorf("%s: %v; want ErrLost", r, err)
		}
	}
	if err := l.Err(); !errors.Is(err, ErrLost) {
		t.Errorf("Err: %v; want ErrLost", err)
	}
	if _, err := l.Clean(t.Context(), 1, func([]byte) {}); !errors.Is(err, ErrLost) {
		t.Errorf("Clean: %v; want ErrLost", err)
	}
	same(t, reopened(t, l), []string{"one", "other"})
}

// After a failed write the server is started anew. After a failed fsync that would
// prove nothing, if the promise is that records are on disk.
func TestServerFails(t *testing.T) {
	tests := []struct {
		op   string
		sync bool
		lost bool
	}{
		{"write", true, false},
		{"sync", true, true},
		{"sync", false, false},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.op, " ", test.sync), func(t *testing.T) {
			l := open(t, t.TempDir(), test.sync)
			replay(t, l)
			write(t, l, "one")
			n, _ := l.now()
			failure := &os.PathError{Op: test.op, Path: "1.blk", Err: syscall.EIO}
			n.log.Errorf("Critical write error: %v", failure)
			n.server.Shutdown()
			want := []string{"one"}
			if test.lost {
				acks := make(chan error, 1)
				l.Append([]byte("two"), func(err error) { acks <- err })
				if err := <-acks; !errors.Is(err, ErrLost) || !errors.Is(err, syscall.EIO) {
					t.Errorf("%v; want ErrLost and the reason", err)
				}
			} else {
				write(t, l, "two", "three")
				want = append(want, "two", "three")
				if err, n := l.Err(), l.Stats().Restarts; err != nil || n != 1 {
					t.Errorf("%d starts, %v; want 1", n, err)
				}
			}
			same(t, reopened(t, l), want)
		})
	}
}

// Close writes what waits, and nothing is taken after it.
func TestClose(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	for _, r := range numbered(2000) {
		l.Append([]byte(r), nil)
	}
	same(t, reopened(t, l), numbered(2000))
	acks := make(chan error, 1)
	l.Append([]byte("late"), func(err error) { acks <- err })
	if err := <-acks; err != ErrClosed {
		t.Errorf("an append after Close: %v; want ErrClosed", err)
	}
	if err := l.Err(); err != ErrClosed {
		t.Errorf("Err: %v; want ErrClosed", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// When its time is up, Close gives up what waits and says so.
func TestCloseGivesUp(t *testing.T) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	ctx, cancel := withCancel(t)
	begun, release := make(chan struct{}), make(chan struct{})
	l.Append([]byte("written"), func(error) { close(begun); <-release })
	<-begun
	acks := make(chan error, 3)
	for range 3 {
		l.Append([]byte("left"), func(err error) { acks <- err })
	}
	closed := make(chan error)
	go func() { closed <- l.Close(ctx) }()
	cancel()
	<-l.abort
	close(release)
	if err := <-closed; err == nil || !strings.Contains(err.Error(), "3 records were not written") {
		t.Errorf("Close: %v", err)
	}
	for range 3 {
		if err := <-acks; err != ErrClosed {
			t.Errorf("%v; want ErrClosed", err)
		}
	}
	again := open(t, l.options.Dir, true)
	same(t, replay(t, again), []string{"written"})
}

func TestReplayEndsWithTheError(t *testing.T) {
	l := open(t, t.TempDir(), false)
	replay(t, l)
	write(t, l, numbered(10)...)
	closeLog(t, l)
	l = open(t, l.options.Dir, false)
	seen, stop := 0, errors.New("stop")
	err := l.Replay(t.Context(), func([]byte) error {
		if seen++; seen == 4 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || seen != 4 {
		t.Errorf("%v after %d records; want %v after 4", err, seen, stop)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Replay(ctx, func([]byte) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// A figure for the eye: how long the records of a start take.
func TestManyRecords(t *testing.T) {
	l := open(t, t.TempDir(), false)
	replay(t, l)
	const n = 200_000
	r := make([]byte, 120)
	for i := range n {
		binary.BigEndian.PutUint64(r, uint64(i))
		l.Append(r, nil)
	}
	closeLog(t, l)
	begin := time.Now()
	l = open(t, l.options.Dir, false)
	opened := time.Since(begin)
	i := uint64(0)
	if err := l.Replay(t.Context(), func(r []byte) error {
		if got := binary.BigEndian.Uint64(r); got != i {
			return fmt.Errorf("record %d is in the place of %d", got, i)
		}
		i++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records of %d bytes: opened in %v, replayed in %v", i, len(r), opened, time.Since(begin)-opened)
	if i != n || l.Stats().Records != n {
		t.Errorf("%d records, %d in Stats; want %d", i, l.Stats().Records, n)
	}
}

// Variables of the environment that a test gives to itself in another process.
const (
	childName = "HOLDFAST_WAL_TEST"
	childDir  = "HOLDFAST_WAL_DIR"
)

// command returns a command that runs the test t in another process, with dir as the
// result of childOf.
func command(t *testing.T, dir string, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	name := "/proc/self/exe" // can be run by others than the owner of its folder
	if runtime.GOOS != "linux" {
		name = os.Args[0]
	}
	cmd := exec.Command(name, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), childName+"="+t.Name(), childDir+"="+dir)
	cmd.SysProcAttr = attr
	return cmd
}

// childOf returns the folder if this is the process of a command of the test t.
func childOf(t *testing.T) (dir string, ok bool) {
	if os.Getenv(childName) != t.Name() {
		return "", false
	}
	return os.Getenv(childDir), true
}

// run runs the test t in another process.
func run(t *testing.T, dir string, attr *syscall.SysProcAttr) {
	t.Helper()
	out, err := command(t, dir, attr).CombinedOutput()
	if bytes.Contains(out, []byte("SKIP-CHILD")) {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestSecondProcess(t *testing.T) {
	if dir, ok := childOf(t); ok {
		_, err := Open(t.Context(), options(t, dir, true))
		if err == nil || !strings.Contains(err.Error(), dir+": the folder is in use by another process") {
			t.Errorf("Open: %v", err)
		}
		if _, err := Check(t.Context(), dir, nil); !errors.Is(err, errInUse) {
			t.Errorf("Check: %v", err)
		}
		return
	}
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, "mine")
	run(t, l.options.Dir, nil)
	write(t, l, "still mine")
	same(t, reopened(t, l), []string{"mine", "still mine"})
}

func TestReadOnlyFolder(t *testing.T) {
	if dir, ok := childOf(t); ok {
		_, err := Open(t.Context(), options(t, dir, true))
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Open: %v", err)
		}
		return
	}
	attr := unprivileged(t)
	l := open(t, t.TempDir(), true)
	dir := l.options.Dir
	replay(t, l)
	write(t, l, "kept")
	closeLog(t, l)
	before := listing(t, dir)
	for _, mode := range []os.FileMode{0o555, 0o755} {
		err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				err = os.Chmod(name, mode)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if mode == 0o555 {
			os.Chmod(filepath.Dir(dir), 0o755)
			run(t, dir, attr)
		}
	}
	if after := listing(t, dir); after != before {
		t.Errorf("the folder has changed from\n%sto\n%s", before, after)
	}
	l = open(t, dir, true)
	same(t, replay(t, l), []string{"kept"})
}

// listing returns the names, sizes and contents of all files.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		fmt.Fprintf(&b, "%s %d %x\n", name, len(text), checksum(append(make([]byte, 8), text...)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFolderOfAnotherFormat(t *testing.T) {
	tests := []struct{ name, format, want string }{
		{"newer", "holdfast log, format 3\n", "the log has format 3; this version of Holdfast reads format 1 to 2"},
		{"foreign", "something else", `has "something else"`},
		{"lost", "", "it holds no log: the file format is missing"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := open(t, t.TempDir(), true)
			dir := l.options.Dir
			closeLog(t, l)
			name := filepath.Join(dir, formatName)
			if os.Remove(name); test.format != "" {
				if err := os.WriteFile(name, []byte(test.format), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, dir)
			_, err := Open(t.Context(), options(t, dir, true))
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("Open: %v; want %q", err, test.want)
			}
			if _, err := Check(t.Context(), dir, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Check: %v; want %q", err, test.want)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("the folder has changed from\n%sto\n%s", before, after)
			}
		})
	}
}

// A folder of the format before is read, and becomes one of this format when it is written.
func TestFolderOfTheFormerFormat(t *testing.T) {
	l := open(t, t.TempDir(), true)
	dir := l.options.Dir
	closeLog(t, l)
	name := filepath.Join(dir, formatName)
	if err := os.WriteFile(name, []byte("holdfast log, format 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(t.Context(), dir, nil); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(name); string(text) != "holdfast log, format 1\n" {
		t.Errorf("Check has made it %q", text)
	}
	closeLog(t, open(t, dir, true))
	if text, _ := os.ReadFile(name); string(text) != "holdfast log, format 2\n" {
		t.Errorf("Open has made it %q", text)
	}
}

func withCancel(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
