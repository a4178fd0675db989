package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"time"
)

// version is the format of the messages.
const version = 1

// A message begins with a header of this layout, little-endian:
//
//	0   version
//	1   kind
//	2   flags
//	3   zero
//	4   CRC-32C of the message without these four bytes
//	8   sequence of the message before it, 0 if there is none
//	16  first sequence that belongs to the log, 0 if nothing was deleted
//	24  kindPack: number of records; kindPart: offset of the part
//	28  kindPack: bytes that follow; kindPart: length of the whole record
//
// The server has a checksum of each message too, but its own: it says that the file
// holds what the server was given. This one is made before the first copy and looked
// at after the last, so it covers the connections, a backup that was restored, and
// another server. It costs some microseconds a pack, little beside an fsync.
const headerSize = 32

type kind byte

const (
	kindPack    kind = 1 // records, each with its length before it as a uvarint
	kindPart    kind = 2 // a part of one record, the parts without a gap between them
	kindMark    kind = 3 // no records: it is written for its header
	kindTerm    kind = 4 // the beginning of a term, with the name of the node that leads
	kindEnd     kind = 5 // its end, if the leader has given up in order
	kindLease   kind = 6 // on a subject of its own: the leader lives
	kindRefused kind = 0 // is never written
)

// flagSynced says that the message was written with Options.Sync, and so was
// whatever the same writer had written before it.
const flagSynced = 1

const (
	maxPack    = 64 << 10  // bytes of a pack, which is read whole for one record
	maxRecords = 512       // of a pack
	maxPart    = 256 << 10 // bytes of a part; larger messages make others wait too long

	// maxPacked is the length of the longest record that fits into a pack.
	maxPacked = maxPack - headerSize - 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	kind        kind
	synced      bool
	prev, first uint64
	count, size uint32 // as the layout says
}

// seal writes the header into the room for it.
func (h header) seal(message []byte) {
	le := binary.LittleEndian
	message[0], message[1], message[2], message[3] = version, byte(h.kind), 0, 0
	if h.synced {
		message[2] = flagSynced
	}
	le.PutUint64(message[8:], h.prev)
	le.PutUint64(message[16:], h.first)
	le.PutUint32(message[24:], h.count)
	le.PutUint32(message[28:], h.size)
	le.PutUint32(message[4:], checksum(message))
}

func checksum(message []byte) uint32 {
	sum := crc32.Update(0, castagnoli, message[:4])
	return crc32.Update(sum, castagnoli, message[8:])
}

var errShort = errors.New("is too short")

// parse returns the header and what follows it.
func parse(message []byte) (header, []byte, error) {
	if len(message) == 0 {
		return header{}, nil, errShort
	}
	if message[0] != version { // the rest may have another layout
		return header{}, nil, fmt.Errorf("has format %d; this version of Holdfast reads format %d", message[0], version)
	}
	if len(message) < headerSize {
		return header{}, nil, errShort
	}
	le := binary.LittleEndian
	if le.Uint32(message[4:]) != checksum(message) {
		return header{}, nil, errors.New("is damaged: its checksum does not match")
	}
	h := header{
		kind: kind(message[1]), synced: message[2]&flagSynced != 0,
		prev: le.Uint64(message[8:]), first: le.Uint64(message[16:]),
		count: le.Uint32(message[24:]), size: le.Uint32(message[28:]),
	}
	return h, message[headerSize:], nil
}

// A pack is what the writer takes from the queue: records for one message, or one
// record for several, or a mark.
type pack struct {
	kind    kind
	message []byte // kindPack, kindMark: room for the header, then the records
	record  []byte // kindPart: the record
	records int
	bytes   int64  // of the records
	cut     uint64 // kindMark: the first sequence that belongs to the log
	refused error  // kindRefused
	dones   []func(error)
}

// newPack returns an empty pack that uses the memory of spare.
func newPack(spare []byte) *pack {
	return &pack{kind: kindPack, message: append(spare[:0], make([]byte, headerSize)...)}
}

// holds reports whether p has room for another record of n bytes.
func (p *pack) holds(n int) bool {
	return p.kind == kindPack && p.records < maxRecords && len(p.message)+uvarintLen(n)+n <= maxPack
}

func uvarintLen(n int) int {
	var b [binary.MaxVarintLen64]byte
	return binary.PutUvarint(b[:], uint64(n))
}

func (p *pack) add(record []byte, done func(error)) {
	p.message = binary.AppendUvarint(p.message, uint64(len(record)))
	p.message = append(p.message, record...)
	p.records++
	p.bytes += int64(len(record))
	p.dones = append(p.dones, done)
}

// A message is one as it was read from the stream.
type message struct {
	sequence uint64
	time     time.Time
	term     uint64 // in which it was written; 0 if one process writes
	data     []byte
	size     int64 // on disk
}

// A decoder makes records of messages. It sees them in their order, without a hole.
type decoder struct {
	first uint64       // the first sequence that belongs to the log
	warn  func(string) // is told of records that were given up with Sync off

	prev       uint64 // the sequence of the message before; 0 at the beginning
	term       uint64 // of that message
	record     []byte // the parts of a record so far
	size       int    // of the whole record; 0: none has begun
	torn       bool   // parts may lack their beginning, since messages are missing
	incomplete int    // records that a crash has cut off
}

// whole reports whether no record is in the middle of its parts.
func (d *decoder) whole() bool { return d.size == 0 }

// message calls f with each record that m completes. Its error, but for one of f,
// names the sequence.
func (d *decoder) message(m message, f func(record []byte) error) error {
	h, payload, err := parse(m.data)
	if err == nil {
		err = d.inTerm(m.term, h)
	}
	if err == nil {
		err = d.follow(m.sequence, h)
	}
	if err != nil {
		return d.bad(m.sequence, err)
	}
	if h.kind != kindPart || h.count == 0 { // the writer has begun anew
		d.drop()
	}
	switch h.kind {
	case kindPack:
		err = d.pack(m.sequence, h, payload, f)
	case kindPart:
		err = d.part(m.sequence, h, payload, f)
	case kindMark, kindTerm, kindEnd:
		d.torn = false
	default:
		err = d.bad(m.sequence, fmt.Errorf("has the unknown kind %d", h.kind))
	}
	return err
}

func (d *decoder) bad(sequence uint64, err error) error {
	return &badMessage{sequence, err}
}

// A badMessage is the error of a message that cannot be read, or that others should
// precede.
type badMessage struct {
	sequence uint64
	err      error
}

func (e *badMessage) Error() string { return fmt.Sprintf("message %d %v", e.sequence, e.err) }

func (e *badMessage) Unwrap() error { return e.err }

// inTerm checks that no leader has written after the next one had begun.
func (d *decoder) inTerm(term uint64, h header) error {
	before := d.term
	d.term = term
	if d.prev == 0 || term == before || term > before && h.kind == kindTerm {
		return nil
	}
	return fmt.Errorf("is of term %d, and follows one of term %d", term, before)
}

// termOf returns the term in which the message with the id was written. The ids of a
// leader begin with it.
func termOf(id string) uint64 {
	text, _, ok := strings.Cut(id, ".")
	if !ok {
		return 0
	}
	term, _ := strconv.ParseUint(text, 10, 64)
	return term
}

// follow checks that nothing is missing before the message. Of a log without Sync, a
// power cut may leave the end with holes; what is behind them is used, since its
// writer had said that it may be gone.
func (d *decoder) follow(sequence uint64, h header) error {
	missing := h.prev != d.prev
	if d.prev == 0 {
		missing = d.first == 0 && h.prev != 0 || d.first != 0 && d.first != sequence
		if d.first != 0 && h.prev < d.first && d.first < sequence {
			missing = false // what lies between are messages of the lease, or none
		}
	}
	before := d.prev
	d.prev = sequence
	if !missing {
		return nil
	}
	if h.synced && before == 0 {
		return fmt.Errorf("is the first one, and the log begins with message %d: %w", max(d.first, 1), errMissing)
	}
	if h.synced {
		return fmt.Errorf("was written after message %d, and follows message %d: %w", h.prev, before, errMissing)
	}
	d.warn(fmt.Sprintf("messages between %d and %d are missing; they were written without sync", before, sequence))
	d.drop()
	d.torn = true
	return nil
}

var errMissing = errors.New("what was between them is missing")

// drop forgets the record whose parts have come to no end.
func (d *decoder) drop() {
	if d.size > 0 {
		d.incomplete++
	}
	d.record, d.size = nil, 0
}

func (d *decoder) pack(sequence uint64, h header, payload []byte, f func([]byte) error) error {
	d.torn = false
	if int(h.size) != len(payload) {
		return d.bad(sequence, fmt.Errorf("has %d bytes of records; its header says %d", len(payload), h.size))
	}
	for i := range h.count {
		n, used := binary.Uvarint(payload)
		if used <= 0 || n > uint64(len(payload)-used) {
			return d.bad(sequence, fmt.Errorf("ends within record %d of %d", i+1, h.count))
		}
		record := payload[used : used+int(n)]
		payload = payload[used+int(n):]
		if err := f(record); err != nil {
			return err
		}
	}
	if len(payload) > 0 {
		return d.bad(sequence, fmt.Errorf("has %d bytes after its last record", len(payload)))
	}
	return nil
}

func (d *decoder) part(sequence uint64, h header, payload []byte, f func([]byte) error) error {
	if d.torn && h.count != 0 {
		return nil
	}
	d.torn = false
	if h.count == 0 {
		d.size = int(h.size)
	}
	end := len(d.record) + len(payload)
	if int(h.count) != len(d.record) || int(h.size) != d.size || len(payload) == 0 || end > d.size || d.size > MaxRecord {
		return d.bad(sequence, fmt.Errorf("has bytes %d to %d of a record of %d; want them from %d of %d",
			h.count, int(h.count)+len(payload), h.size, len(d.record), d.size))
	}
	d.record = append(d.record, payload...)
	if end < d.size {
		return nil
	}
	record := d.record
	d.record, d.size = nil, 0
	return f(record)
}
