// Package wal is a log of records in a folder: an append is acknowledged when the
// record is on disk, and Replay returns the records in the order of the appends.
// Unlike a file to which records are written, it is a JetStream stream of a NATS
// server inside the process, so that the same log can be replicated.
//
// # The log
//
// There is one stream with one subject and one writer. Each message says which
// sequence the writer expects to be the last, so a writer that has been replaced is
// refused. Nothing listens for clients: the server is reached by a connection in memory.
//
// What is appended while a message is on its way to the disk goes into the next
// one, a pack, without lingering. One message is in flight at a time, so no record
// can overtake another, and a crash takes away the end of the log alone. A record
// that a pack cannot hold is written in parts.
//
// Each message also names the one before it and the first that belongs to the log.
// A hole in the middle is therefore an error of Replay and never a shorter log, and
// a deletion that a crash has interrupted is completed at the next start.
//
// # Several nodes
//
// Open is for one process that has the log for itself. A Member has it in common with
// others: each record is on the disks of a majority of the nodes that have copies before
// it is acknowledged, and of the members one leads at a time and writes. A lead is a term
// with a number, and Replay checks that no term has written into the next one.
//
// A majority keeps what was acknowledged. It is lost if a majority loses its folders, or
// has Options.Sync off and loses power at once. The folder in which the server makes a
// new file is not synced at a member, which the file systems of Linux do with the file.
//
// # Concurrency properties
//
// Append, Err and Stats may be called by any number of goroutines at once, and never
// wait for the disk. One goroutine writes, and calls back. Clean may run beside
// appends. Close ends all of them.
package wal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/histogram"
)

// MaxRecord is the greatest length of a record, in bytes.
const MaxRecord = 64 << 20

// maxWaiting is how many bytes may wait in memory before Err refuses more.
const maxWaiting = 64 << 20

// ErrClosed is what a record gets that was not written before the log was closed.
var ErrClosed = errors.New("wal: the log is closed")

// ErrLost is what every record gets after the log was lost to this process: another
// writer has appended to it, or the disk has failed to keep what it had accepted. The
// process cannot continue; the next Open finds what is on disk. A Member that has lost
// its lead can lead again. Then the record may be in the log, or not: the next leader
// reads which.
var ErrLost = errors.New("wal: the log is lost to this process")

// Options say where the log is and what it promises.
type Options struct {
	// Dir is the folder of the log. It is created, for its owner alone, if it is not
	// there.
	Dir string

	// Sync makes a record wait until the disk has it, so that it outlives a power
	// cut. If false, a record outlives the process, but a power cut may take what was
	// appended in about the last second.
	Sync bool

	// Logger gets the warnings and errors of the server and of the log. It is never
	// nil.
	Logger *slog.Logger
}

// A Log is an open log. It is made by Open, or by a Member that has come to lead.
type Log struct {
	options Options
	folder  *folder       // nil: it is the member's
	lead    *lead         // nil: no other process writes
	id      string        // begins the message ids of this process
	abort   chan struct{} // closed by Close when its time is up, and with gone
	ended   chan struct{} // closed by the writer when it has ended
	gone    chan struct{} // closed when lost is set
	closed  chan struct{} // closed when Close has ended

	// Of the writer alone.
	serial uint64

	cleaning sync.Mutex // held by Clean; protects passEnd
	passEnd  uint64     // the last sequence of the pass that Clean is in

	work sync.Cond // signaled when queue or closing has changed; its lock is mu

	mu           sync.Mutex // protects the following fields
	node         *node      // replaced by the writer alone
	at           position   // written by the writer alone
	queue        []*pack    // not taken by the writer yet; appends go to the last
	spare        []byte     // for the next pack
	waiting      int        // records that are not written, in the queue or in flight
	waitingBytes int64
	trouble      error // of the last attempt
	aborted      bool  // abort is closed
	lost         error // wraps ErrLost; final
	closing      bool
	unwritten    int // records that Close has given up
	stats        Stats
}

// A position is where the next message goes.
type position struct {
	last  uint64 // the last sequence that the stream has given, the fence
	prev  uint64 // the sequence of the last message; less than last after a loss, 0 if there is none
	first uint64 // the first sequence that belongs to the log; 0: nothing was deleted
}

// Stats describe a log.
type Stats struct {
	Bytes    int64 // of the messages in the log
	Messages int64 // in the log
	Records  int64 // in the log; what was there at Open is counted when Replay has ended

	Waiting      int   // records that were appended and are not acknowledged
	WaitingBytes int64 // of those records

	Restarts int // of the server inside, after failed writes

	// Syncs are the times from handing a message to the server until it was
	// acknowledged, in nanoseconds. With Sync the time of the disk is in them.
	Syncs histogram.Histogram
}

// Open opens the log in o.Dir, or creates it. It locks the folder until Close. If it
// fails, because the folder belongs to another process, is read-only or full, or has
// a newer format, no record has been changed. Open blocks while the server reads the
// log; ctx is looked at between the steps of that.
func Open(ctx context.Context, o Options) (*Log, error) {
	f, err := openFolder(o.Dir)
	if err != nil {
		return nil, err
	}
	l, err := openIn(ctx, f, o)
	if err != nil {
		f.close()
		return nil, fmt.Errorf("wal: open %s: %w", o.Dir, err)
	}
	return l, nil
}

func openIn(ctx context.Context, f *folder, o Options) (*Log, error) {
	if err := f.probe(0); err != nil {
		return nil, err
	}
	n, err := start(ctx, f, o, true)
	if err != nil {
		return nil, err
	}
	l, err := newLog(ctx, f, o, n)
	if err != nil {
		n.stop()
		return nil, err
	}
	go l.write()
	return l, nil
}

func newLog(ctx context.Context, f *folder, o Options, n *node) (*Log, error) {
	s, err := n.state(ctx)
	if err != nil {
		return nil, err
	}
	// A process that was killed may have left records that Replay finds and a power cut
	// would take, from under those that follow.
	if err := f.sync(); err != nil {
		return nil, err
	}
	if s.at.last > s.at.prev && s.messages > 0 {
		o.Logger.Warn("the end of the log is missing", "dir", o.Dir, "after", s.at.prev, "until", s.at.last)
	}
	if s.firstStored < s.at.first { // a crash has interrupted a deletion
		if err := n.purge(ctx, s.at.first); err != nil {
			return nil, err
		}
		if s, err = n.state(ctx); err != nil {
			return nil, err
		}
	}
	var id [8]byte
	rand.Read(id[:])
	return makeLog(o, f, n, s, hex.EncodeToString(id[:])), nil
}

func makeLog(o Options, f *folder, n *node, s state, id string) *Log {
	l := &Log{
		options: o, folder: f, id: id,
		abort: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{}), closed: make(chan struct{}),
		node: n, at: s.at,
		stats: Stats{Bytes: s.bytes, Messages: s.messages},
	}
	l.work.L = &l.mu
	return l
}

// Replay calls f with each record that was there at Open, from the first to the last.
// An error of f ends it and is returned. The slice is f's during the call alone. A
// record that a crash has cut off is left out. Replay is called once, before the
// first Append. It blocks; ctx ends it. A message that cannot be read is an error
// that names the sequence and the folder.
func (l *Log) Replay(ctx context.Context, f func(record []byte) error) error {
	n, at := l.now()
	if at.prev == 0 {
		return nil
	}
	d := decoder{first: at.first, warn: l.warn}
	records := int64(0)
	err := l.scan(ctx, n, max(at.first, 1), at.prev, func(m message) error {
		return d.message(m, func(record []byte) error {
			records++
			return f(record)
		})
	})
	if err != nil {
		return fmt.Errorf("wal: replay %s: %w", l.options.Dir, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Records += records
	return nil
}

func (l *Log) warn(text string) { l.options.Logger.Warn(text, "dir", l.options.Dir) }

func (l *Log) now() (*node, position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.node, l.at
}

// Append appends a record of 1 to MaxRecord bytes and does not keep it. It returns at
// once. When the record is on disk, or in the log without Options.Sync, done(nil) is
// called, if done is not nil. One goroutine calls all of them, in the order of the
// appends, and the next message waits for it: done must not block. It is never called
// from within Append, so the caller may hold a lock that done takes.
//
// A write that fails is repeated until it succeeds; until then Err returns the reason
// and the records behind it wait. So done gets an error only if this process will not
// write the record: ErrClosed, ErrLost, or a length that is not allowed. In the first
// two cases the record may still be found by the next Open, if it was in flight.
func (l *Log) Append(record []byte, done func(error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		if done != nil {
			go done(ErrClosed) // the writer ends
		}
		return
	}
	l.appendLocked(record, done)
	l.work.Signal()
}

func (l *Log) appendLocked(record []byte, done func(error)) {
	switch {
	case len(record) == 0 || len(record) > MaxRecord:
		err := fmt.Errorf("wal: a record has %d bytes; want 1 to %d", len(record), MaxRecord)
		l.queue = append(l.queue, &pack{kind: kindRefused, refused: err, dones: []func(error){done}})
		return
	case len(record) > maxPacked:
		l.queue = append(l.queue, &pack{
			kind: kindPart, record: append([]byte(nil), record...), records: 1, bytes: int64(len(record)), dones: []func(error){done},
		})
	default:
		l.openPackLocked(len(record)).add(record, done)
	}
	l.waiting++
	l.waitingBytes += int64(len(record))
}

// openPackLocked returns the last pack of the queue, with room for n bytes.
func (l *Log) openPackLocked(n int) *pack {
	if i := len(l.queue) - 1; i >= 0 && l.queue[i].holds(n) {
		return l.queue[i]
	}
	p := newPack(l.spare)
	l.spare = nil
	l.queue = append(l.queue, p)
	return p
}

// Err returns why records do not reach the disk at present, or nil. It also returns
// an error while more than 64 MiB wait in memory, so that callers refuse work then.
// The error wraps that of the file system where there is one, such as ENOSPC.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost != nil:
		return l.lost
	case l.closing:
		return ErrClosed
	case l.trouble != nil:
		return l.trouble
	case l.waitingBytes > maxWaiting:
		return fmt.Errorf("wal: %d records of %d bytes wait for the disk; at most %d bytes may", l.waiting, l.waitingBytes, maxWaiting)
	}
	return nil
}

// Stats returns a snapshot.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Waiting, s.WaitingBytes = l.waiting, l.waitingBytes
	return s
}

// stuck is how long Close waits, beyond its time, for a disk that does not answer.
const stuck = 5 * time.Second

// Close writes what waits, stops the server and unlocks the folder; a log that a Member
// leads gives the lead up instead. When ctx ends first, the records that are left get
// ErrClosed, and Close returns an error that counts them. When Close has returned, done
// has been called for each record that was appended before. After Close the log cannot be
// used again. A second call waits for the first and returns nil.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	first := !l.closing
	l.closing = true
	l.work.Broadcast()
	l.mu.Unlock()
	if !first {
		return l.awaitClosed(ctx)
	}
	defer close(l.closed)
	select {
	case <-l.ended:
	case <-ctx.Done():
		l.mu.Lock()
		l.abortLocked()
		l.mu.Unlock()
		select {
		case <-l.ended:
		case <-time.After(stuck):
			return fmt.Errorf("wal: close %s: the disk does not answer; the folder stays locked until the process ends", l.options.Dir)
		}
	}
	err := l.letGo()
	if l.unwritten > 0 { // the writer has ended
		return fmt.Errorf("wal: close %s: %d records were not written", l.options.Dir, l.unwritten)
	}
	return err
}

// letGo gives up what an open log has.
func (l *Log) letGo() error {
	n, _ := l.now()
	if l.lead != nil {
		l.release(n)
		n.stop()
		return nil
	}
	n.stop()
	defer l.folder.close()
	return l.folder.sync() // what was written without Sync
}

// abortLocked ends the attempt to write that is under way.
func (l *Log) abortLocked() {
	if !l.aborted {
		l.aborted = true
		close(l.abort)
	}
}

// awaitClosed waits until the first call of Close has ended, or ctx ends.
func (l *Log) awaitClosed(ctx context.Context) error {
	select {
	case <-l.closed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
