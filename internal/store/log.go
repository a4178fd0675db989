package store

import (
	"encoding/binary"
	"time"

	"holdfast/internal/exchange"
)

// A log has the records of jobs that have ended, in the order in which they ended,
// which is the order in which they are forgotten. They lie one after the other in
// chunks of bytes, found by an index without pointers: so a hundred thousand of
// them are some dozens of objects, which the garbage collector need not look into,
// and a record costs nothing but its bytes. What has been read from a chunk stays
// valid when the record is forgotten; the chunk goes when nobody needs it.
type log struct {
	index  map[ID]place
	chunks [][]byte // the oldest first; to the last one is appended
	first  uint32   // the number of the first chunk
	front  int      // where in it the oldest record begins
	bytes  int64    // that the records take

	large map[ID]exchange.Response // those that are objects of their own, since so they need no copy
}

type place struct{ chunk, offset uint32 }

// A chunk has the size chunkSize. A response of more than largeSize is not in it,
// so no more than an eighth of a chunk is left unused.
const (
	chunkSize = 256 << 10
	largeSize = chunkSize / 8
)

func newLog() log {
	return log{index: make(map[ID]place), large: make(map[ID]exchange.Response)}
}

// A record is what is kept of a job.
type record struct {
	id                       ID
	accepted, started, ended time.Duration
	outcome                  Outcome
	claimed                  bool // under key
	key                      Key
	length                   int // in its chunk
}

// states are encoded by their place.
var states = []State{Queued, Running, Done, Failed, Canceled, Dropped}

// What a record takes besides its Detail and Response.
const (
	fixedSize = 16 + 3*8 + 1 + 2 + 1 + 32 + 2*4
	indexSize = 2 * (16 + 8) // a map is at most half empty, nearly always
	claimSize = 256          // the Claim, and its place in a map
)

// add appends a record and returns its outcome as it lies in the log. A response of
// more than largeSize the log takes over as it is, any other it copies.
func (l *log) add(r record) Outcome {
	response := 0
	switch {
	case r.outcome.State != Done:
	case r.outcome.Response.Size() > largeSize:
		l.large[r.id] = r.outcome.Response
	default:
		response = 4 + r.outcome.Response.Size()
	}
	size := fixedSize + len(r.outcome.Detail) + response
	last := len(l.chunks) - 1
	if last < 0 || len(l.chunks[last])+size > cap(l.chunks[last]) {
		l.chunks = append(l.chunks, make([]byte, 0, chunkSize))
		last++
	}
	b := l.chunks[last]
	l.index[r.id] = place{l.first + uint32(last), uint32(len(b))}

	b = append(b, r.id[:]...)
	for _, t := range []time.Duration{r.accepted, r.started, r.ended} {
		b = binary.LittleEndian.AppendUint64(b, uint64(t))
	}
	state := byte(0)
	for i, s := range states {
		if s == r.outcome.State {
			state = byte(i)
		}
	}
	b = append(b, state)
	b = binary.LittleEndian.AppendUint16(b, uint16(r.outcome.Status))
	claimed := byte(0)
	if r.claimed {
		claimed = 1
	}
	b = append(append(b, claimed), r.key[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.outcome.Detail)))
	b = binary.LittleEndian.AppendUint32(b, uint32(response))
	b = append(b, r.outcome.Detail...)
	if response > 0 {
		b = r.outcome.Response.Append(b)
		r.outcome.Response = exchange.Cut(b[len(b)-response:])
	}
	l.chunks[last] = b
	l.bytes += r.size()
	return r.outcome
}

// size returns the bytes that the record takes.
func (r *record) size() int64 {
	n := fixedSize + indexSize + len(r.outcome.Detail) + r.outcome.Response.Size()
	if r.claimed {
		n += claimSize
	}
	return int64(n)
}

// decode reads the record at the beginning of b.
func (l *log) decode(b []byte) (r record) {
	all := len(b)
	b = b[copy(r.id[:], b):]
	for _, t := range []*time.Duration{&r.accepted, &r.started, &r.ended} {
		*t = time.Duration(binary.LittleEndian.Uint64(b))
		b = b[8:]
	}
	r.outcome.State = states[b[0]]
	r.outcome.Status = int(binary.LittleEndian.Uint16(b[1:]))
	r.claimed = b[3] != 0
	b = b[4:]
	b = b[copy(r.key[:], b):]
	detail, response := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	b = b[8:]
	r.outcome.Detail = string(b[:detail])
	if r.outcome.State == Done {
		r.outcome.Response = l.large[r.id]
	}
	if response > 0 {
		r.outcome.Response = exchange.Cut(b[detail : detail+response])
	}
	r.length = all - len(b[detail+response:])
	return r
}

// find returns the record with an id.
func (l *log) find(id ID) (record, bool) {
	at, ok := l.index[id]
	if !ok {
		return record{}, false
	}
	return l.decode(l.chunks[at.chunk-l.first][at.offset:]), true
}

// oldest returns the record that was added first, if there is one.
func (l *log) oldest() (record, bool) {
	if len(l.index) == 0 {
		return record{}, false
	}
	return l.decode(l.chunks[0][l.front:]), true
}

// drop forgets r, which must be the oldest.
func (l *log) drop(r record) {
	delete(l.index, r.id)
	delete(l.large, r.id)
	l.bytes -= r.size()
	l.front += r.length
	if l.front == len(l.chunks[0]) && (len(l.chunks) > 1 || len(l.index) == 0) {
		l.chunks[0] = nil
		l.chunks = l.chunks[1:]
		l.first++
		l.front = 0
	}
}
