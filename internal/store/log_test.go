package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/internal/exchange"
)

// rawResponse is a Response of any bytes: to the log it is nothing else.
func rawResponse(head, body []byte) exchange.Response {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(head)))
	return exchange.Cut(append(append(b, head...), body...), nil)
}

func emptyLog() *log {
	l := newLog(nil)
	return &l
}

func sameRecord(a, b record) bool {
	ra, rb := a.outcome.Response.Append(nil), b.outcome.Response.Append(nil)
	a.outcome.Response, b.outcome.Response = exchange.Response{}, exchange.Response{}
	return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) && bytes.Equal(ra, rb)
}

// checkLog adds records, then finds and drops each.
func checkLog(t *testing.T, l *log, records []record) {
	t.Helper()
	for _, r := range records {
		kept := r
		kept.outcome = l.add(r)
		if !sameRecord(kept, r) {
			t.Fatalf("add returns %+v, want %+v", kept, r)
		}
	}
	total := int64(0)
	for _, r := range records {
		total += r.size()
		got, ok := l.find(r.id)
		if !ok || !sameRecord(got, r) || got.size() != r.size() {
			t.Fatalf("found %v %+v, want %+v", ok, got, r)
		}
	}
	if l.bytes != total {
		t.Errorf("%d bytes, want %d", l.bytes, total)
	}
	for i, r := range records {
		got, ok := l.oldest()
		if !ok || got.id != r.id || got.ended != r.ended || got.claimed != r.claimed || got.key != r.key || got.size != r.size() {
			t.Fatalf("the oldest is %v %+v of size %d, want %+v of %d", ok, got, got.size, r, r.size())
		}
		l.drop(got)
		if _, ok := l.find(r.id); ok {
			t.Fatal("found what was dropped")
		}
		if i+1 < len(records) {
			if last, ok := l.find(records[len(records)-1].id); !ok || !sameRecord(last, records[len(records)-1]) {
				t.Fatal("the last one is lost or changed")
			}
		}
	}
	if _, ok := l.oldest(); ok || l.bytes != 0 || len(l.chunks) != 0 || len(l.large) != 0 {
		t.Fatalf("%d bytes, %d chunks and %d large responses are left", l.bytes, len(l.chunks), len(l.large))
	}
}

func TestLog(t *testing.T) {
	l := emptyLog()
	for _, sizes := range [][]int{
		{0}, {chunkSize}, {largeSize - 10, largeSize, largeSize + 1, 0}, {3 * chunkSize, 0, 3 * chunkSize},
		{chunkSize / 2, chunkSize / 2, chunkSize / 2},
		{100, 3 * chunkSize, 100, 100, chunkSize - 400, 100},
		make([]int, 5000),
	} {
		for detail := range 2 {
			var records []record
			for i, n := range sizes {
				r := record{id: NewID(), accepted: 1, started: time.Duration(i), ended: 1 << 62, claimed: i%2 == 0}
				if i%3 == 0 {
					r.request = Request{"POST", strings.Repeat("/é", i%60), "POST /"}
				}
				if r.claimed {
					r.key = Key{31: 7}
				}
				if detail == 1 {
					r.outcome = Outcome{State: Failed, Status: 504, Detail: strings.Repeat("d", min(n, largeSize))}
				} else {
					r.outcome = Outcome{State: Done, Response: rawResponse(nil, bytes.Repeat([]byte{byte(i)}, n))}
				}
				records = append(records, r)
			}
			checkLog(t, l, records)
			if l.front != 0 {
				t.Errorf("front %d in an empty log", l.front)
			}
		}
	}
}

// A record of an exact size ends where its chunk ends, and the next one begins the
// next.
func TestLogChunkIsFilled(t *testing.T) {
	l := emptyLog()
	const pieces = chunkSize / largeSize
	for range pieces {
		l.add(record{id: NewID(), outcome: Outcome{State: Failed, Detail: strings.Repeat("x", largeSize-fixedSize)}})
	}
	if len(l.chunks) != 1 || len(l.chunks[0].b) != chunkSize || cap(l.chunks[0].b) != chunkSize {
		t.Fatalf("%d chunks, %d of %d bytes", len(l.chunks), len(l.chunks[0].b), cap(l.chunks[0].b))
	}
	next := record{id: NewID(), outcome: Outcome{State: Failed}}
	l.add(next)
	if len(l.chunks) != 2 {
		t.Fatalf("%d chunks", len(l.chunks))
	}
	for range pieces {
		first, _ := l.oldest()
		l.drop(first)
	}
	if len(l.chunks) != 1 || l.front != 0 || l.first != 1 {
		t.Errorf("%d chunks, front %d, first %d", len(l.chunks), l.front, l.first)
	}
	if got, ok := l.oldest(); !ok || got.id != next.id {
		t.Errorf("%+v", got)
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("id"), int64(1), int64(2), int64(3), byte(2), uint16(200), true, []byte("key"), "detail", []byte("head"), []byte("body"), byte(3))
	f.Add([]byte{}, int64(0), int64(0), int64(0), byte(0), uint16(0), false, []byte{}, "", []byte{}, []byte{}, byte(1))
	f.Add([]byte{255}, int64(-1), int64(1<<62), int64(1), byte(3), uint16(65535), true, bytes.Repeat([]byte{9}, 40), "\xff\x00", []byte{}, bytes.Repeat([]byte{1}, 5000), byte(100))
	f.Fuzz(func(t *testing.T, id []byte, accepted, started, ended int64, state byte, status uint16, claimed bool, key []byte, detail string, head, body []byte, n byte) {
		var records []record
		for i := range int(n)%64 + 1 {
			r := record{accepted: time.Duration(accepted), started: time.Duration(started), ended: time.Duration(ended), claimed: claimed}
			r.request = Request{string(key), string(head), detail}.cut()
			copy(r.id[2:], id)
			r.id[0] = byte(i) // no two are the same
			copy(r.key[:], key)
			detail = detail[:min(len(detail), largeSize)]
			r.outcome = Outcome{State: states[(int(state)+i)%len(states)], Status: int(status), Detail: detail}
			if r.outcome.State == Done {
				r.outcome.Response = rawResponse(head, bytes.Repeat(body, i*i))
			}
			records = append(records, r)
		}
		checkLog(t, emptyLog(), records)
	})
}
