package store

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"holdfast/internal/budget"
	"holdfast/internal/exchange"
)

// A log has the records of jobs that have ended, in the order in which they ended,
// which is the order in which they are forgotten. They lie one after the other in
// chunks of bytes, found by an index without pointers: so a hundred thousand of
// them are some dozens of objects, which the garbage collector need not look into,
// and a record costs nothing but its bytes. What has been read from a chunk stays
// valid when the record is forgotten; the chunk goes when nobody needs it.
//
// To give way, a record can also be forgotten in the middle: its bytes stay in the chunk,
// without a place in the index, and are passed over. So an order of the places, and the
// cursors with it, stay what they are.
type log struct {
	budget *budget.Budget
	index  map[ID]place
	chunks []chunk // the oldest first; to the last one is appended
	first  uint32  // the number of the first chunk
	front  int     // where in it the oldest record begins
	bytes  int64   // that the records take
	unread int     // records without the mark of read

	large   map[ID]exchange.Response // those that are objects of their own, since so they need no copy
	letters map[ID]Letter            // of jobs that can run again; they have no place in a chunk, which they might fill
}

// A chunk has the bytes of records. What is read from it keeps it as a whole.
type chunk struct {
	b           []byte // nil when it has no record any more
	held        *budget.Shared
	live, large int   // its records in the index, and those of them with a large response
	apart       int64 // bytes of these, and of letters
	gaps        int   // records forgotten in the middle
}

type place struct{ chunk, offset uint32 }

func (p place) before(q place) bool {
	return p.chunk < q.chunk || p.chunk == q.chunk && p.offset < q.offset
}

// A chunk has the size chunkSize. A response of more than largeSize is not in it,
// so no more than an eighth of a chunk is left unused.
const (
	chunkSize = 256 << 10
	largeSize = exchange.Large
)

func newLog(b *budget.Budget) log {
	return log{budget: b, index: make(map[ID]place), large: make(map[ID]exchange.Response), letters: make(map[ID]Letter)}
}

// A record is what is kept of a job.
type record struct {
	id                       ID
	accepted, started, ended time.Duration
	outcome                  Outcome
	claimed                  bool // under key
	key                      Key
	request                  Request // cut
	attempts                 int
}

// A header is what eviction needs of a record, which is read without an allocation
// each time that something ends.
type header struct {
	id      ID
	ended   time.Duration
	claimed bool
	wasRead bool
	key     Key
	length  int   // in its chunk
	size    int64 // that it takes in all
}

// job returns a Job that has ended as the record says.
func (r *record) job() *Job {
	return &Job{ID: r.id, request: r.request, accepted: r.accepted, started: r.started, ended: r.ended, outcome: r.outcome, attempts: r.attempts}
}

// states are encoded by their place.
var states = []State{Queued, Running, Done, Failed, Canceled, Dropped}

// What a record takes besides its strings and its Response.
const (
	endedAt   = 16 + 2*8    // the place of its end,
	stateAt   = endedAt + 8 // of its state,
	marksAt   = stateAt + 1 + 2
	lengthsAt = marksAt + 1 + 32 // and of its lengths: detail, response, and those of the request
	fixedSize = lengthsAt + 2*4 + 3
	indexSize = 2 * (16 + 8) // a map is at most half empty, nearly always
	claimSize = 256          // the Claim, and its place in a map
	moreSize  = 4            // how often the job was started, if not once; behind the response
)

// The marks of a record. One that was read is the only thing in a log that changes.
const (
	markClaimed = 1 << iota
	markRead
	markMore // it was started more often than once
)

// add appends a record and returns its outcome as it lies in the log. A response of
// more than largeSize the log takes over as it is, any other it copies.
func (l *log) add(r record) Outcome {
	response, large, apart := 0, 0, 0
	switch {
	case r.outcome.Response.Size() == 0:
	case r.outcome.Response.Size() > largeSize:
		l.large[r.id] = r.outcome.Response
		large, apart = 1, r.outcome.Response.Size()
	default:
		response = 4 + r.outcome.Response.Size()
	}
	size := fixedSize + len(r.outcome.Detail) + response + r.request.size() + r.more()
	last := len(l.chunks) - 1
	if last < 0 || len(l.chunks[last].b)+size > cap(l.chunks[last].b) {
		l.chunks = append(l.chunks, chunk{b: make([]byte, 0, chunkSize), held: l.budget.Share(chunkSize)})
		last++
	}
	c := &l.chunks[last]
	c.live++
	c.large += large
	letter := r.outcome.Letter
	if r.outcome.Letter = (Letter{}); letter.Captured != nil { // whoever reads about the job need not know it
		l.letters[r.id] = letter
		l.budget.Add(letter.size())
	}
	c.apart += int64(apart) + letter.size()
	l.index[r.id] = place{l.first + uint32(last), uint32(len(c.b))}
	l.budget.Add(indexed(r.claimed))
	c.b = r.append(c.b, response)
	if response > 0 {
		end := len(c.b) - r.more()
		r.outcome.Response = exchange.Cut(c.b[end-response:end:end], c.held)
	}
	l.bytes += r.size() + letter.size()
	l.unread++
	return r.outcome
}

// append appends the record to b, with its response if that takes space.
func (r *record) append(b []byte, response int) []byte {
	b = append(b, r.id[:]...)
	for _, t := range []time.Duration{r.accepted, r.started, r.ended} {
		b = binary.LittleEndian.AppendUint64(b, uint64(t))
	}
	b = append(b, byte(slices.Index(states, r.outcome.State)))
	b = binary.LittleEndian.AppendUint16(b, uint16(r.outcome.Status))
	marks := byte(0)
	if r.claimed {
		marks = markClaimed
	}
	if r.more() > 0 {
		marks |= markMore
	}
	b = append(append(b, marks), r.key[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(r.outcome.Detail)))
	b = binary.LittleEndian.AppendUint32(b, uint32(response))
	b = append(b, byte(len(r.request.Method)), byte(len(r.request.Target)), byte(len(r.request.Route)))
	b = append(b, r.outcome.Detail...)
	b = append(append(append(b, r.request.Method...), r.request.Target...), r.request.Route...)
	if response > 0 {
		b = r.outcome.Response.Append(b)
	}
	if r.more() > 0 {
		b = binary.LittleEndian.AppendUint32(b, uint32(r.attempts))
	}
	return b
}

// more returns the length of what a record says of attempts: nothing, for most. Whether it
// was started once or not at all the time of its start tells.
func (r *record) more() int {
	if r.attempts == usual(r.started) {
		return 0
	}
	return moreSize
}

// usual returns how often a job was started, if its record does not say.
func usual(started time.Duration) int {
	if started == 0 {
		return 0
	}
	return 1
}

// size returns what a Letter takes, with its place in a map.
func (l Letter) size() int64 {
	if l.Captured == nil {
		return 0
	}
	return int64(len(l.Captured)) + claimSize
}

func (r Request) size() int { return len(r.Method) + len(r.Target) + len(r.Route) }

// size returns the bytes that the record takes.
func (r *record) size() int64 {
	return indexed(r.claimed) + int64(fixedSize+len(r.outcome.Detail)+r.request.size()+r.outcome.Response.Size()+r.more())
}

// indexed returns what a record takes besides its chunk and a large response.
func indexed(claimed bool) int64 {
	if claimed {
		return indexSize + claimSize
	}
	return indexSize
}

// decode reads the record at an offset of a chunk.
func (l *log) decode(c *chunk, offset uint32) (r record) {
	b := c.b[offset:]
	copy(r.id[:], b)
	for i, t := range []*time.Duration{&r.accepted, &r.started, &r.ended} {
		*t = time.Duration(binary.LittleEndian.Uint64(b[len(r.id)+8*i:]))
	}
	r.outcome.State = states[b[stateAt]]
	r.outcome.Status = int(binary.LittleEndian.Uint16(b[stateAt+1:]))
	r.claimed = b[marksAt]&markClaimed != 0
	copy(r.key[:], b[marksAt+1:])
	detail, response, request := lengths(b)
	b = b[fixedSize:]
	text := func(n int) (s string) {
		s, b = string(b[:n]), b[n:]
		return s
	}
	r.outcome.Detail = text(detail)
	r.request = Request{text(request[0]), text(request[1]), text(request[2])}
	if response > 0 {
		r.outcome.Response = exchange.Cut(b[:response:response], c.held)
	} else if mayAnswer(r.outcome.State) {
		r.outcome.Response = l.large[r.id]
	}
	if r.attempts = usual(r.started); c.b[offset+marksAt]&markMore != 0 {
		r.attempts = int(binary.LittleEndian.Uint32(b[response:]))
	}
	return r
}

// mayAnswer reports whether a job in a state may have a response.
func mayAnswer(s State) bool { return s == Done || s == Failed }

// header reads the header of the record at the beginning of b.
func (l *log) header(b []byte) (h header) {
	copy(h.id[:], b)
	h.ended = time.Duration(binary.LittleEndian.Uint64(b[endedAt:]))
	h.claimed, h.wasRead = b[marksAt]&markClaimed != 0, b[marksAt]&markRead != 0
	copy(h.key[:], b[marksAt+1:])
	h.length = lengthOf(b)
	h.size = int64(h.length) + indexed(h.claimed)
	if _, response, _ := lengths(b); response > 0 {
		h.size -= 4 // which size leaves out
	} else if mayAnswer(states[b[stateAt]]) {
		h.size += int64(l.large[h.id].Size())
	}
	h.size += l.letters[h.id].size()
	return h
}

// lengths returns those that stand in the record at the beginning of b.
func lengths(b []byte) (detail, response int, request [3]int) {
	b = b[lengthsAt:fixedSize]
	detail, response = int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint32(b[4:]))
	return detail, response, [3]int{int(b[8]), int(b[9]), int(b[10])}
}

// lengthOf returns the length of the record at the beginning of b.
func lengthOf(b []byte) int {
	detail, response, request := lengths(b)
	more := 0
	if b[marksAt]&markMore != 0 {
		more = moreSize
	}
	return fixedSize + detail + response + request[0] + request[1] + request[2] + more
}

// find returns the record with an id.
func (l *log) find(id ID) (record, bool) {
	at, ok := l.index[id]
	if !ok {
		return record{}, false
	}
	return l.decode(&l.chunks[at.chunk-l.first], at.offset), true
}

// has reports whether there is a record with an id.
func (l *log) has(id ID) bool {
	_, ok := l.index[id]
	return ok
}

// read marks the record with an id, if there is one.
func (l *log) read(id ID) {
	at, ok := l.index[id]
	if !ok {
		return
	}
	marks := &l.chunks[at.chunk-l.first].b[at.offset+marksAt]
	if *marks&markRead == 0 {
		*marks |= markRead
		l.unread--
	}
}

// oldest returns the header of the record that was added first, if there is one.
func (l *log) oldest() (header, bool) {
	if len(l.index) == 0 {
		return header{}, false
	}
	for {
		for ; l.front < len(l.chunks[0].b); l.front += lengthOf(l.chunks[0].b[l.front:]) {
			if l.there(0, l.front) {
				return l.header(l.chunks[0].b[l.front:]), true
			}
		}
		l.shift()
	}
}

// there reports whether the record at an offset of a chunk is not forgotten.
func (l *log) there(chunk, offset int) bool {
	c := &l.chunks[chunk]
	if c.gaps == 0 {
		return true
	}
	at, ok := l.index[ID(c.b[offset:offset+len(ID{})])]
	return ok && at == place{l.first + uint32(chunk), uint32(offset)}
}

// sorted returns a log with the same records in the order of their ends, to which l hands
// over what is in it.
func (l *log) sorted() log {
	type end struct {
		at    time.Duration
		where place
	}
	ends := make([]end, 0, len(l.index)) // and not records, which are ten times as long
	for i := range l.chunks {
		b := l.chunks[i].b
		for offset := 0; offset < len(b); offset += lengthOf(b[offset:]) {
			if l.there(i, offset) {
				at := time.Duration(binary.LittleEndian.Uint64(b[offset+endedAt:]))
				ends = append(ends, end{at, place{uint32(i), uint32(offset)}})
			}
		}
	}
	slices.SortStableFunc(ends, func(a, b end) int { return cmp.Compare(a.at, b.at) })
	n := newLog(l.budget)
	n.index = make(map[ID]place, len(ends))
	for _, e := range ends {
		r := l.decode(&l.chunks[e.where.chunk], e.where.offset)
		r.outcome.Letter = l.letters[r.id]
		n.add(r)
		l.budget.Add(-indexed(r.claimed) - r.outcome.Letter.size())
	}
	for i := range l.chunks {
		l.empty(i)
	}
	return n
}

// drop forgets r, which must be the oldest.
func (l *log) drop(r header) {
	l.forget(0, r)
	l.front += r.length
	if l.chunks[0].live == 0 && (len(l.chunks) > 1 || len(l.index) == 0) {
		l.shift()
	}
}

// shift takes away the first chunk, which has no record any more.
func (l *log) shift() {
	l.empty(0)
	l.chunks[0] = chunk{}
	l.chunks = l.chunks[1:]
	l.first++
	l.front = 0
}

// remove forgets the record with an id, wherever it lies.
func (l *log) remove(id ID) (header, bool) {
	at, ok := l.index[id]
	if !ok {
		return header{}, false
	}
	i := int(at.chunk - l.first)
	r := l.header(l.chunks[i].b[at.offset:])
	l.forget(i, r)
	l.chunks[i].gaps++
	if l.chunks[i].live == 0 && i < len(l.chunks)-1 {
		l.empty(i)
	}
	return r, true
}

// forget takes the record r of a chunk out of the index.
func (l *log) forget(chunk int, r header) {
	c := &l.chunks[chunk]
	if large, ok := l.large[r.id]; ok {
		large.Held().Release()
		delete(l.large, r.id)
		c.large--
		c.apart -= int64(large.Size())
	}
	if letter, ok := l.letters[r.id]; ok {
		delete(l.letters, r.id)
		c.apart -= letter.size()
		l.budget.Add(-letter.size())
	}
	delete(l.index, r.id)
	c.live--
	l.bytes -= r.size
	if !r.wasRead {
		l.unread--
	}
	l.budget.Add(-indexed(r.claimed))
}

// empty lets go of the bytes of a chunk.
func (l *log) empty(chunk int) {
	c := &l.chunks[chunk]
	if c.b != nil {
		c.held.Release()
		c.b, c.held = nil, nil
	}
}

// yield forgets records until enough reports true, and calls forgotten for each: those
// with a large response first, since each gives back its memory by itself, and the others
// only by the chunk; of both the oldest first, but none that is being read, since its
// memory stays with its readers, nor the newest, whose clients are yet to come for them.
// What it costs when there is nothing to forget is a look at each chunk, and at each
// record of those with a large response.
func (l *log) yield(enough func() bool, forgotten func(header)) {
	for _, large := range []bool{true, false} {
		for i := range l.yielding() {
			c := &l.chunks[i]
			if c.live == 0 || large && c.large == 0 || !large && !c.held.Alone() {
				continue
			}
			if l.yieldChunk(i, large, enough, forgotten) {
				return
			}
		}
	}
}

// yielding returns how many chunks may give way: all but the newest ones, as many as fit
// into a part of the budget. Otherwise whoever sends large bodies could drive out each
// result before its client had the time to ask for it.
func (l *log) yielding() int {
	left, n := l.budget.Part(), len(l.chunks)
	for n > 0 {
		c := &l.chunks[n-1]
		if left -= chunkSize + c.apart; left < 0 {
			break
		}
		n--
	}
	return n
}

// frees reports whether yield could free about n bytes.
func (l *log) frees(n int64) bool {
	chunks := l.yielding()
	for i := range chunks {
		c := &l.chunks[i]
		if n -= int64(c.live) * indexSize; c.live > 0 && c.held.Alone() {
			n -= chunkSize
		}
	}
	for id, response := range l.large {
		if n <= 0 {
			break
		}
		if int(l.index[id].chunk-l.first) < chunks && response.Held().Alone() {
			n -= int64(response.Size())
		}
	}
	return n <= 0
}

// yieldChunk does so for one chunk, of its large responses alone or of all that it has,
// and reports whether that was enough. The chunk itself goes with its last record.
func (l *log) yieldChunk(i int, large bool, enough func() bool, forgotten func(header)) bool {
	c := &l.chunks[i]
	offset := 0
	if i == 0 {
		offset = l.front
	}
	for offset < len(c.b) {
		at := offset
		offset += lengthOf(c.b[at:])
		if !l.there(i, at) {
			continue
		}
		r := l.header(c.b[at:])
		response, apart := l.large[r.id]
		if large && !apart || apart && !response.Held().Alone() {
			continue
		}
		l.forget(i, r)
		c.gaps++
		forgotten(r)
		if apart && enough() {
			return true
		}
	}
	if c.live > 0 {
		return false
	}
	l.empty(i)
	return enough()
}

// end returns the place behind all records.
func (l *log) end() place {
	last := len(l.chunks) - 1
	if last < 0 {
		return place{chunk: l.first}
	}
	return place{l.first + uint32(last), uint32(len(l.chunks[last].b))}
}

// mostSeen is how many records one call of before looks at. The lock is held for so
// long: half a millisecond to three, the more the longer the records are.
const mostSeen = 100_000

// before returns at most limit of the records that lie before a place, which may
// be any, the last added first; if a state is given, those in it. It returns
// also how far it has looked, and whether there is anything before that. Since
// records only go in the order in which they came, a place stays what it is.
func (l *log) before(at place, state State, limit int) (found []record, rest place, more bool) {
	if end := l.end(); end.before(at) {
		at = end
	}
	want := slices.Index(states, state)
	oldest := place{l.first, uint32(l.front)}
	var offsets []uint32 // of the records in a chunk: they can only be read forward
	for seen := 0; len(found) < limit && seen < mostSeen && oldest.before(at); {
		if at.offset == 0 {
			at.chunk--
			at.offset = chunkSize
		}
		c, offset := &l.chunks[at.chunk-l.first], uint32(0)
		b := c.b
		if at.chunk == l.first {
			offset = oldest.offset
		}
		offsets = offsets[:0]
		if len(b) == 0 {
			at.offset = offset
			continue
		}
		for offset < min(at.offset, uint32(len(b))) {
			offsets = append(offsets, offset)
			offset += uint32(lengthOf(b[offset:]))
		}
		for len(offsets) > 0 && len(found) < limit && seen < mostSeen {
			at.offset, offsets = offsets[len(offsets)-1], offsets[:len(offsets)-1]
			seen++
			if l.there(int(at.chunk-l.first), int(at.offset)) && (state == "" || int(b[at.offset+stateAt]) == want) {
				found = append(found, l.decode(c, at.offset))
			}
		}
	}
	return found, at, oldest.before(at)
}
