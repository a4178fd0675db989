package wal

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// At an acknowledgement the kernel holds no page of the log's files that it has yet to
// write. Without Sync it does, which shows that the test can see it.
func TestAcknowledgedIsSynced(t *testing.T) {
	for _, sync := range []bool{false, true} {
		l := open(t, t.TempDir(), sync)
		replay(t, l)
		most, err := uint64(0), error(nil)
		acks := make(chan error, 300)
		for i := range 300 {
			l.Append(make([]byte, 100+i*i), func(e error) {
				n, stat := unwritten(l.folder.messages)
				most, err = max(most, n), errors.Join(err, stat)
				acks <- e
			})
		}
		for range 300 {
			await(t, acks)
		}
		closeLog(t, l)
		if errors.Is(err, syscall.ENOSYS) || !sync && err == nil && most == 0 {
			t.Skip("this kernel or file system does not say what is written")
		}
		if err != nil {
			t.Fatal(err)
		}
		if sync && most > 0 {
			t.Errorf("up to %d pages were not written when a record was acknowledged", most)
		}
		t.Logf("sync %v: up to %d pages not written", sync, most)
	}
}

// What a process without Sync has left in the kernel when it was killed is on disk
// before Open returns: with Sync nothing may stand on it that it does not outlive.
func TestOpenSyncs(t *testing.T) {
	dir := t.TempDir()
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, err := start(t.Context(), f, options(t, dir, false), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.publish("left", 0, sealed(header{kind: kindPack, count: 1, size: 5}, "\x04left"), nil); err != nil {
		t.Fatal(err)
	}
	n.stop()
	f.close()
	before, err := unwritten(f.messages)
	if errors.Is(err, syscall.ENOSYS) || err == nil && before == 0 {
		t.Skip("this kernel or file system does not say what is written")
	}
	l := open(t, dir, true)
	if after, err := unwritten(f.messages); err != nil || after > 0 {
		t.Errorf("%d pages are not written, %d before Open: %v", after, before, err)
	}
	same(t, replay(t, l), []string{"left"})
}

// unwritten returns how many pages of the blocks in the folder the kernel has yet to
// write.
func unwritten(dir string) (uint64, error) {
	const cachestat = 451
	names, err := filepath.Glob(filepath.Join(dir, "*.blk"))
	pages := uint64(0)
	for _, name := range names {
		f, e := os.Open(name)
		if e != nil {
			return 0, e
		}
		var whole struct{ offset, length uint64 } // a length of 0 is to the end
		var stat struct{ cached, dirty, writeback, evicted, recently uint64 }
		_, _, errno := syscall.Syscall6(cachestat, f.Fd(), uintptr(unsafe.Pointer(&whole)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0)
		f.Close()
		if errno != 0 {
			return 0, errno
		}
		pages += stat.dirty + stat.writeback
	}
	return pages, err
}

// While the disk takes nothing, Err says so and records wait; when there is room again
// they get through, in order and once, without a new start. Here the disk is full for
// files that exceed a length.
func TestFullDisk(t *testing.T) {
	dir, ok := childOf(t)
	if !ok {
		run(t, t.TempDir(), nil)
		return
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	fullDisk(t, dir, syscall.EFBIG, func() { limitFiles(t, 700_000) }, func() { limitFiles(t, before.Cur) })
}

// limitFiles limits how long the files of this process may become.
func limitFiles(t *testing.T, length uint64) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ) // so that the write fails
	var size syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &size)
	size.Cur = length
	if err = errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &size)); err != nil {
		t.Fatal(err)
	}
}

// The same on a small file system.
func TestFullFileSystem(t *testing.T) {
	dir, ok := childOf(t)
	if !ok {
		if os.Getuid() != 0 {
			t.Skip("only root can mount a file system; TestFullDisk is the same with another error")
		}
		run(t, t.TempDir(), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}) // the mount ends with the process
		return
	}
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("none", dir, "tmpfs", 0, "size=12m")); err != nil {
		fmt.Println("SKIP-CHILD: no file system can be mounted:", err)
		return
	}
	filler := filepath.Join(dir, "filler")
	fill := func() {
		if err := os.WriteFile(filler, make([]byte, 11<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), options(t, filepath.Join(dir, "other"), true))
		if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Open on a full disk: %v", err)
		}
	}
	fullDisk(t, dir, syscall.ENOSPC, fill, func() { os.Remove(filler) })
}

func fullDisk(t *testing.T, dir string, want error, fill, free func()) {
	l := open(t, filepath.Join(dir, "log"), true)
	replay(t, l)
	write(t, l, record(0))
	fill()
	next := 1
	acks := make(chan error, 20_000)
	more := func() {
		l.Append([]byte(record(next)), func(err error) { acks <- err })
		next++
	}
	for late := time.Now().Add(limit); l.Err() == nil; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(late) || next == 20_000 {
			t.Fatal("the disk does not become full")
		}
		more()
	}
	for range 100 {
		more()
	}
	time.Sleep(300 * time.Millisecond) // some attempts; nothing depends on how many
	if err := l.Err(); !errors.Is(err, want) {
		t.Errorf("Err: %v; want %v", err, want)
	}
	if _, err := l.Clean(t.Context(), 1000, func([]byte) {}); !errors.Is(err, want) {
		t.Errorf("Clean: %v; want %v", err, want)
	}
	free()
	for range next - 1 {
		await(t, acks)
	}
	recovered(t, l, next)
}

// recovered checks a log that takes records again.
func recovered(t *testing.T, l *Log, records int) {
	t.Helper()
	if err := l.Err(); err != nil {
		t.Errorf("Err with room: %v", err)
	}
	if n := l.Stats().Restarts; n != 1 {
		t.Errorf("the server was started anew %d times; want once, when there was room", n)
	}
	closeLog(t, l)
	l = open(t, l.options.Dir, true)
	if n := numbers(t, l); n != records {
		t.Errorf("%d records; want %d", n, records)
	}
}

// Close on a full disk gives up what waits, when its time is up.
func TestCloseOnFullDisk(t *testing.T) {
	dir, ok := childOf(t)
	if !ok {
		run(t, t.TempDir(), nil)
		return
	}
	l := open(t, dir, true)
	replay(t, l)
	write(t, l, "kept")
	limitFiles(t, 100_000)
	acks := make(chan error, 1)
	l.Append(make([]byte, 200_000), func(err error) { acks <- err })
	for late := time.Now().Add(limit); l.Err() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("no error")
		}
	}
	ctx, cancel := withCancel(t)
	cancel()
	if err := l.Close(ctx); err == nil || !strings.Contains(err.Error(), "1 records were not written") {
		t.Errorf("Close: %v", err)
	}
	if err := <-acks; err != ErrClosed {
		t.Errorf("the record: %v; want ErrClosed", err)
	}
}

// The server is reached by nobody but this process.
func TestNothingListens(t *testing.T) {
	before := listeners(t)
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, "one")
	n, _ := l.now()
	if s := n.server; s.Addr() != nil || s.MonitorAddr() != nil || s.ClusterAddr() != nil || s.NumRoutes() != 0 || s.NumLeafNodes() != 0 {
		t.Error("the server has an address")
	}
	if after := listeners(t); after != before {
		t.Errorf("%d sockets listen; before the start %d", after, before)
	}
}

// listeners returns how many TCP sockets of this process listen.
func listeners(t *testing.T) (n int) {
	t.Helper()
	mine := map[string]bool{}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil {
			mine[to] = true
		}
	}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a kernel without it
		}
		for line := range strings.Lines(string(text)) {
			const listen, state, inode = "0A", 3, 9
			if f := strings.Fields(line); len(f) > inode && f[state] == listen && mine["socket:["+f[inode]+"]"] {
				n++
			}
		}
	}
	return n
}
