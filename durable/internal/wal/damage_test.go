package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// raw appends messages to a log that is closed, beside its writer.
func raw(t *testing.T, dir string, messages ...[]byte) {
	t.Helper()
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	n, err := start(t.Context(), f, options(t, dir, true), true)
	if err != nil {
		t.Fatal(err)
	}
	defer n.stop()
	for _, m := range messages {
		info, err := n.stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.publish(fmt.Sprint("raw-", info.State.LastSeq), info.State.LastSeq, m, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// sealed returns a message.
func sealed(h header, payload string) []byte {
	m := append(make([]byte, headerSize), payload...)
	h.seal(m)
	return m
}

// logOf returns the folder of a log with one message.
func logOf(t *testing.T, records ...string) string {
	t.Helper()
	l := open(t, t.TempDir(), true)
	replay(t, l)
	write(t, l, records...)
	closeLog(t, l)
	return l.options.Dir
}

// A message that cannot be read is an error that says which; what is before it is
// read, and Check reads what is behind it too.
func TestBadMessage(t *testing.T) {
	good := header{kind: kindPack, synced: true, prev: 1, count: 2, size: 6}
	damaged := sealed(good, "\x02ab\x02cd")
	damaged[headerSize+1] ^= 1
	newer := sealed(good, "\x02ab\x02cd")
	newer[0] = 2
	with := func(change func(*header)) header { h := good; change(&h); return h }
	tests := []struct {
		name    string
		message []byte
		want    string
	}{
		{"empty", nil, "is too short"},
		{"short", []byte{1, 2, 3}, "is too short"},
		{"damaged", damaged, "is damaged: its checksum does not match"},
		{"newer", newer, "has format 2; this version of Holdfast reads format 1"},
		{"kind", sealed(with(func(h *header) { h.kind = 9 }), ""), "has the unknown kind 9"},
		{"cut off", sealed(with(func(h *header) { h.size = 4 }), "\x02ab\x02"), "ends within record 2 of 2"},
		{"long", sealed(with(func(h *header) { h.size = 7 }), "\x02ab\x02cdx"), "has 1 bytes after its last record"},
		{"size", sealed(good, "\x02ab"), "has 3 bytes of records; its header says 6"},
		{"hole", sealed(with(func(h *header) { h.prev = 9 }), "\x02ab\x02cd"), "was written after message 9, and follows message 1: what was between them is missing"},
		{"part", sealed(header{kind: kindPart, synced: true, prev: 1, count: 5, size: 9}, "abcd"), "has bytes 5 to 9 of a record of 9; want them from 0 of 0"},
		{"long part", sealed(header{kind: kindPart, synced: true, prev: 1, size: 3}, "abcd"), "has bytes 0 to 4 of a record of 3"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			badMessageIn(t, test.message, "message 2 "+test.want)
		})
	}
}

func badMessageIn(t *testing.T, message []byte, want string) {
	dir := logOf(t, "first")
	raw(t, dir, message, sealed(header{kind: kindPack, synced: true, prev: 2, count: 1, size: 5}, "\x04last"))
	l := open(t, dir, true)
	var records []string
	err := l.Replay(t.Context(), func(r []byte) error { records = append(records, string(r)); return nil })
	if err == nil || !strings.Contains(err.Error(), dir+": "+want) {
		t.Errorf("Replay: %v; want %q", err, want)
	}
	if len(records) == 0 || records[0] != "first" || slices.Contains(records, "last") {
		t.Errorf("Replay has read %q", records)
	}
	closeLog(t, l)
	records = nil
	s, err := Check(t.Context(), dir, func(r []byte) error { records = append(records, string(r)); return nil })
	if err != nil || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], want) {
		t.Errorf("Check: %v, %q; want %q", err, s.Problems, want)
	}
	if len(records) < 2 || records[0] != "first" || records[len(records)-1] != "last" {
		t.Errorf("Check has read %q", records)
	}
}

// A log whose last message cannot be read is not opened: that message says where the
// log begins.
func TestBadLastMessage(t *testing.T) {
	dir := logOf(t, "first")
	raw(t, dir, []byte("nonsense of some length, more than a header has"))
	_, err := Open(t.Context(), options(t, dir, true))
	if err == nil || !strings.Contains(err.Error(), dir+": message 2 has format 110") {
		t.Errorf("Open: %v", err)
	}
	s, err := Check(t.Context(), dir, nil)
	if err != nil || s.Records != 1 || len(s.Problems) != 1 {
		t.Errorf("Check: %v, %+v", err, s)
	}
}

// The same if the disk has damaged it.
func TestDamagedLastMessage(t *testing.T) {
	dir := logOf(t, "first")
	raw(t, dir, sealed(header{kind: kindPack, synced: true, prev: 1, count: 1, size: 41}, "\x28"+strings.Repeat("x", 40)))
	name := filepath.Join(dir, storeName, "$G", "streams", streamName, "msgs", "1.blk")
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	damage(t, name, info.Size()-30)
	_, err = Open(t.Context(), options(t, dir, true))
	if err == nil || !strings.Contains(err.Error(), dir+": message 2 cannot be read") {
		t.Errorf("Open: %v", err)
	}
	s, err := Check(t.Context(), dir, nil)
	if err != nil || s.Records != 1 || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "message 2") {
		t.Errorf("Check: %v, %+v", err, s)
	}
}

// A crash between the parts of a record leaves a beginning, which is no record; what
// is appended after it is one.
func TestIncompleteRecord(t *testing.T) {
	dir := logOf(t, "first")
	raw(t, dir,
		sealed(header{kind: kindPart, synced: true, prev: 1, size: 9}, "abcd"),
		sealed(header{kind: kindPart, synced: true, prev: 2, count: 4, size: 9}, "efgh"))
	long := strings.Repeat("long", 100_000)
	for i, next := range []string{"second", long, "fourth"} {
		l := open(t, dir, true)
		same(t, replay(t, l), []string{"first", "second", long, "fourth"}[:i+1])
		write(t, l, next)
		closeLog(t, l)
	}
	s, err := Check(t.Context(), dir, nil)
	if err != nil || len(s.Problems) > 0 || s.Incomplete != 1 || s.Records != 4 {
		t.Errorf("Check: %v, %+v; want 4 records and 1 incomplete", err, s)
	}

	// Another one, whose successor is in parts as well.
	raw(t, dir, sealed(header{kind: kindPart, synced: true, prev: s.LastSequence, size: 9}, "abcd"))
	l := open(t, dir, true)
	same(t, replay(t, l), []string{"first", "second", long, "fourth"})
	write(t, l, long)
	same(t, reopened(t, l), []string{"first", "second", long, "fourth", long})
}

// Without Sync a power cut may leave holes near the end. What the writer had never
// promised is no reason not to start.
func TestHoleWithoutSync(t *testing.T) {
	dir := logOf(t, "first")
	raw(t, dir,
		sealed(header{kind: kindPack, prev: 3, count: 1, size: 7}, "\x06behind"),
		sealed(header{kind: kindPart, prev: 9, count: 4, size: 9}, "efghi"),
		sealed(header{kind: kindPack, prev: 3, count: 1, size: 5}, "\x04last"))
	l := open(t, dir, true)
	same(t, replay(t, l), []string{"first", "behind", "last"})
	closeLog(t, l)
	s, err := Check(t.Context(), dir, nil)
	if err != nil || len(s.Problems) != 2 || s.Records != 3 {
		t.Errorf("Check: %v, %+v; want two problems", err, s)
	}
}

// Whatever a message holds, the decoder returns.
func FuzzDecoder(f *testing.F) {
	f.Add(byte(kindPack), uint32(2), uint32(6), []byte("\x02ab\x02cd"))
	f.Add(byte(kindPart), uint32(0), uint32(6), []byte("abcd"))
	f.Add(byte(kindMark), uint32(0), uint32(0), []byte(nil))
	f.Fuzz(func(t *testing.T, k byte, count, size uint32, payload []byte) {
		d := decoder{warn: func(string) {}}
		for i, h := range []header{{kind: kind(k), count: count, size: size}, {kind: kindPart, count: count, size: size}} {
			h.prev = uint64(i)
			length := 0
			err := d.message(message{sequence: uint64(i + 1), data: sealed(h, string(payload))}, func(r []byte) error {
				length += len(r)
				return nil
			})
			if err == nil && h.kind == kindPack && length > len(payload) {
				t.Errorf("records of %d bytes in %d", length, len(payload))
			}
		}
		if err := d.message(message{sequence: 3, data: payload}, func([]byte) error { return nil }); err == nil && len(payload) < headerSize {
			t.Error("a message without a header is accepted")
		}
	})
}

// A block that the disk has damaged is no shorter log.
func TestDamagedBlock(t *testing.T) {
	for _, index := range []bool{true, false} {
		t.Run(fmt.Sprint("index ", index), func(t *testing.T) {
			l := open(t, t.TempDir(), true)
			dir := l.options.Dir
			replay(t, l)
			want := make([]string, 300) // more than one block
			for i := range want {
				want[i] = strings.Repeat(fmt.Sprint(i%10), 40_000)
			}
			write(t, l, want...)
			closeLog(t, l)
			blocks, err := filepath.Glob(filepath.Join(l.folder.messages, "*.blk"))
			if err != nil || len(blocks) < 2 {
				t.Fatalf("%d blocks; want two: %v", len(blocks), err)
			}
			damage(t, filepath.Join(l.folder.messages, "1.blk"), 4<<20)
			if !index { // as after a crash: the server reads all blocks
				os.Remove(filepath.Join(l.folder.messages, "index.db"))
			}
			l = open(t, dir, true)
			records := 0
			err = l.Replay(t.Context(), func([]byte) error { records++; return nil })
			if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "message ") {
				t.Errorf("Replay: %v after %d of %d records", err, records, len(want))
			}
			t.Log(err)
		})
	}
}

func damage(t *testing.T, name string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("damage"), offset)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A stream whose own description is damaged is not replaced by an empty one.
func TestDamagedStream(t *testing.T) {
	dir := logOf(t, "first")
	damage(t, filepath.Join(dir, storeName, "$G", "streams", streamName, "meta.inf"), 10)
	_, err := Open(t.Context(), options(t, dir, true))
	if err == nil || !strings.Contains(err.Error(), "the log's messages cannot be read: Stream metafile") {
		t.Errorf("Open: %v", err)
	}
}

func TestCheck(t *testing.T) {
	if _, err := Check(t.Context(), filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a folder: %v", err)
	}
	if _, err := Check(t.Context(), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "it holds no log") {
		t.Errorf("with an empty folder: %v", err)
	}
	l := open(t, t.TempDir(), true)
	dir := l.options.Dir
	closeLog(t, l)
	if s, err := Check(t.Context(), dir, nil); err != nil || s.Records != 0 || len(s.Problems) > 0 {
		t.Errorf("an empty log: %v, %+v", err, s)
	}
	l = open(t, dir, true)
	replay(t, l)
	write(t, l, "one")
	write(t, l, strings.Repeat("two", 200_000), "three")
	packed, parted := strings.Repeat("p", maxPacked), strings.Repeat("q", maxPacked+1)
	write(t, l, packed)
	write(t, l, parted)
	closeLog(t, l)
	var records []string
	s, err := Check(t.Context(), dir, func(r []byte) error { records = append(records, string(r)); return nil })
	if err != nil {
		t.Fatal(err)
	}
	same(t, records, []string{"one", strings.Repeat("two", 200_000), "three", packed, parted})
	if s.Messages != 7 || s.Packs != 3 || s.Parts != 4 || s.Records != 5 || s.FirstSequence != 1 || s.LastSequence != 7 ||
		s.Bytes < 600_000 || s.First.IsZero() || s.Last.Before(s.First) || s.Incomplete != 0 || len(s.Problems) > 0 {
		t.Errorf("%+v", s)
	}
	l = open(t, dir, true) // Check has unlocked it and left the records
	same(t, replay(t, l), records)
}
