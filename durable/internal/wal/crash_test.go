//go:build unix

package wal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// record returns the i-th record of the crash tests. Some are in parts.
func record(i int) string {
	size := i * 37 % 900
	if i%97 == 96 {
		size = 300_000
	}
	return fmt.Sprint(i, " ", strings.Repeat("x", size))
}

// numbers checks that the records are those from 0 on, without a gap, none twice, and
// returns how many there are.
func numbers(t *testing.T, l *Log) int {
	t.Helper()
	i := 0
	if err := l.Replay(t.Context(), func(r []byte) error {
		if string(r) != record(i) {
			return fmt.Errorf("%.20q is in the place of record %d", r, i)
		}
		i++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return i
}

// A process is killed in the middle of its appends, again and again. Each record that
// it has seen acknowledged is there, in order, and none is there twice.
//
// The kernel goes on after a kill, so this shows nothing about a power cut.
func TestKill(t *testing.T) {
	if dir, ok := childOf(t); ok {
		appendForever(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir, total := t.TempDir(), 0
	for range 8 {
		acked := kill(t, dir, 1+rand.IntN(400), time.Duration(rand.IntN(int(20*time.Millisecond))))
		l := open(t, dir, true)
		n := numbers(t, l)
		closeLog(t, l)
		if n < acked+1 {
			t.Fatalf("%d records after %d was acknowledged", n, acked)
		}
		total = n
	}
	t.Logf("%d records", total)
}

// appendForever appends to what is there, 100 at a time, and prints the number of each
// record that is acknowledged.
func appendForever(t *testing.T, dir string) {
	l := open(t, dir, true)
	places := make(chan struct{}, 100)
	for i := numbers(t, l); ; i++ {
		places <- struct{}{}
		l.Append([]byte(record(i)), func(err error) {
			if err != nil {
				fmt.Println(err)
			}
			fmt.Println(i)
			<-places
		})
	}
}

// kill starts the process, kills it some time after it has acknowledged n records, and
// returns the last that it has acknowledged.
func kill(t *testing.T, dir string, n int, after time.Duration) (last int) {
	t.Helper()
	cmd := command(t, dir, nil)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	defer late.Stop()
	last = -1
	lines := bufio.NewReader(out)
	for seen := 0; ; seen++ {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // what has no end was not said
		}
		if last, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
			t.Errorf("the process says %s", line)
			cmd.Process.Kill()
		}
		if seen == n {
			time.AfterFunc(after, func() { cmd.Process.Kill() })
		}
	}
	cmd.Wait()
	if last < 0 {
		t.Fatal("the process has acknowledged nothing")
	}
	return last
}

// A power cut leaves what was synced and some of what was written after it. At an
// acknowledgement the test notes the length of each file; a moment later it copies
// the files, each cut to a random length that is not below the noted one, or with
// zeros where it was cut, as file systems leave them. In the copy is every record that
// was acknowledged at the note, and it goes on.
//
// This takes for granted that what was written before the acknowledgement was synced;
// TestAcknowledgedIsSynced looks at that. Files that the server replaces, its index,
// are copied as they are.
func TestPowerCut(t *testing.T) {
	if testing.Short() {
		t.Skip("copies many files")
	}
	for _, large := range []bool{false, true} {
		t.Run(fmt.Sprint("large ", large), func(t *testing.T) { powerCuts(t, large) })
	}
}

func powerCuts(t *testing.T, large bool) {
	l := open(t, t.TempDir(), true)
	replay(t, l)
	dir, next, acked := l.options.Dir, 0, 0 // acked is the writer's
	random := rand.New(rand.NewPCG(3, 4))
	one := func(done func()) {
		l.Append([]byte(cutRecord(next, large)), func(err error) {
			acked++
			done()
			if err != nil {
				t.Error(err)
			}
		})
		next++
	}
	cuts, many := 14, 60
	if large {
		cuts, many = 6, 24
	}
	for range cuts {
		copies := t.TempDir()
		lengths, promised := map[string]int64{}, 0
		noted, copied := make(chan error, 1), make(chan error, 1)
		for range random.IntN(many) {
			one(func() {})
		}
		one(func() { // the writer is here, so no message is in flight
			promised = acked
			noted <- noteLengths(dir, lengths)
		})
		await(t, noted)
		for range 1 + random.IntN(4) {
			one(func() {})
		}
		one(func() { copied <- cutCopy(dir, copies, lengths, random) })
		await(t, copied)
		checkCut(t, copies, promised, large)
	}
}

// cutRecord returns the i-th record. With large, the copies see how blocks begin.
func cutRecord(i int, large bool) string {
	if large {
		return fmt.Sprint(i, " ", strings.Repeat("y", 200_000))
	}
	return record(i)
}

func checkCut(t *testing.T, dir string, promised int, large bool) {
	t.Helper()
	l := open(t, dir, true)
	records := replay(t, l)
	if len(records) < promised {
		t.Fatalf("%d records; %d were acknowledged", len(records), promised)
	}
	for i, r := range records {
		if r != cutRecord(i, large) {
			t.Fatalf("%.20q is in the place of record %d", r, i)
		}
	}
	write(t, l, "next")
	same(t, reopened(t, l), append(records, "next"))
}

func noteLengths(dir string, lengths map[string]int64) error {
	return eachFile(dir, func(name string, info fs.FileInfo) error {
		lengths[name] = info.Size()
		return nil
	})
}

// eachFile calls f with the files of a log, by their names in the folder.
func eachFile(dir string, f func(name string, info fs.FileInfo) error) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has replaced it
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return f(name, info)
	})
}

// cutCopy copies the files to another folder, cut as TestPowerCut says.
func cutCopy(from, to string, lengths map[string]int64, random *rand.Rand) error {
	return eachFile(from, func(name string, info fs.FileInfo) error {
		text, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		noted, known := lengths[name]
		if filepath.Ext(name) == ".blk" && int64(len(text)) > noted {
			if !known && random.IntN(2) == 0 {
				return nil // its name had not come to the disk
			}
			cut := noted + random.Int64N(int64(len(text))-noted+1)
			if random.IntN(2) == 0 {
				clear(text[cut:])
			} else {
				text = text[:cut]
			}
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, name), text, 0o600)
	})
}

// Records come, go and are copied, and the process is killed: the last state of each
// thing is there.
func TestKillWhileCleaning(t *testing.T) {
	if dir, ok := childOf(t); ok {
		cleanForever(t, dir)
		return
	}
	if testing.Short() {
		t.Skip("starts processes")
	}
	dir := t.TempDir()
	for range 5 {
		acked := kill(t, dir, 300+rand.IntN(1500), time.Duration(rand.IntN(int(20*time.Millisecond))))
		l := open(t, dir, true)
		state := latest(t, l)
		size := l.Stats().Bytes
		closeLog(t, l)
		for thing := range things {
			if last := acked - (acked-thing)%things; last >= 0 && acked >= thing && state[thing] < last {
				t.Errorf("thing %d is at %d; %d was acknowledged", thing, state[thing], last)
			}
		}
		if size > 2*most {
			t.Errorf("the log has %d bytes", size)
		}
	}
}

// things is how many things have a state in the log of TestKillWhileCleaning: record i
// is the state of thing i%things.
const things = 20

func latest(t *testing.T, l *Log) []int {
	state := slices.Repeat([]int{-1}, things)
	for _, r := range replay(t, l) {
		i, err := strconv.Atoi(r[:strings.IndexByte(r, ' ')])
		if err != nil {
			t.Fatal(err)
		}
		state[i%things] = i // the last in the log is the state, as for the store
	}
	return state
}

func cleanForever(t *testing.T, dir string) {
	l := open(t, dir, true)
	var state [things]atomic.Int64
	next := 0
	for thing, i := range latest(t, l) {
		state[thing].Store(int64(i))
		next = max(next, i+1)
	}
	places, decide := make(chan struct{}, 100), make(chan struct{}, 1) // a lock
	go func() {
		for {
			_, err := l.Clean(context.Background(), 200_000, func(r []byte) {
				decide <- struct{}{}
				defer func() { <-decide }()
				if i, _ := strconv.Atoi(string(r[:strings.IndexByte(string(r), ' ')])); state[i%things].Load() == int64(i) {
					l.Append(r, nil)
				}
			})
			if err != nil {
				fmt.Println(err)
			}
		}
	}()
	for i := next; ; i++ {
		awaitRoom(t, l)
		places <- struct{}{}
		decide <- struct{}{}
		state[i%things].Store(int64(i))
		l.Append([]byte(record(i)), func(err error) {
			if err != nil {
				fmt.Println(err)
			}
			fmt.Println(i)
			<-places
		})
		<-decide
	}
}
