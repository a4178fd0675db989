package wal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The times between the attempts to write a message.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// write is the writer: it takes pack after pack, writes it, and calls back, until the
// log is closed and the queue is empty.
func (l *Log) write() {
	defer close(l.ended)
	for p := l.next(); p != nil; p = l.next() {
		l.finish(p, l.put(p))
	}
}

// next waits for a pack and takes it from the queue. It returns nil when there will
// be none.
func (l *Log) next() *pack {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closing {
			return nil
		}
		l.work.Wait()
	}
	p := l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return p
}

// put writes the messages of p.
func (l *Log) put(p *pack) error {
	switch p.kind {
	case kindRefused:
		return p.refused
	case kindPart:
		return l.putParts(p.record)
	case kindLease:
		return l.renew()
	}
	h := header{kind: p.kind, count: uint32(p.records), size: uint32(len(p.message) - headerSize), first: p.cut}
	return l.store(h, p.message)
}

func (l *Log) putParts(record []byte) error {
	message := make([]byte, headerSize, headerSize+maxPart)
	for offset := 0; offset < len(record); offset += maxPart {
		part := record[offset:min(offset+maxPart, len(record))]
		message = append(message[:headerSize], part...)
		h := header{kind: kindPart, count: uint32(offset), size: uint32(len(record))}
		if err := l.store(h, message); err != nil {
			return err
		}
	}
	return nil
}

// store writes one message.
func (l *Log) store(h header, message []byte) error {
	n, at := l.now()
	h.prev, h.first, h.synced = at.prev, max(h.first, at.first), l.options.Sync
	h.seal(message)
	begin := time.Now()
	sequence, err := l.persist(n.message(n.names.subject, l.newID(), at.last, message), at.last)
	if err == nil {
		l.stored(position{last: sequence, prev: sequence, first: h.first}, message, begin)
	}
	return err
}

// newID returns the id of a new message.
func (l *Log) newID() string {
	l.serial++
	return l.id + "-" + strconv.FormatUint(l.serial, 10)
}

// persist tries until the message is there, or never will be: its fence, the sequence
// last, stays the same, so an attempt that has got through unnoticed is found by the
// next one and not repeated. It returns the sequence of the message.
func (l *Log) persist(m *nats.Msg, last uint64) (uint64, error) {
	for wait := time.Duration(0); ; wait = min(max(2*wait, minBackoff), maxBackoff) {
		if err := l.pause(wait); err != nil {
			return 0, err
		}
		sequence, err := l.attempt(m, last)
		if err == nil {
			return sequence, nil
		}
		l.fail(err)
	}
}

// pause waits before an attempt. It returns an error if there is to be none.
func (l *Log) pause(wait time.Duration) error {
	if wait > 0 {
		select {
		case <-l.abort:
		case <-time.After(wait):
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.lost != nil:
		return l.lost
	case l.aborted:
		return ErrClosed
	}
	return nil
}

// attempt tries to write a message behind the sequence last.
func (l *Log) attempt(m *nats.Msg, last uint64) (uint64, error) {
	n, err := l.running(len(m.Data))
	if err != nil {
		return 0, err
	}
	sequence, err := n.publishMsg(m, l.abort)
	if errors.Is(err, errConflict) {
		sequence, err = n.find(m.Subject, m.Header.Get(jetstream.MsgIDHeader), last)
	}
	if err != nil || !l.options.Sync || l.folder == nil {
		return sequence, err
	}
	if err := l.folder.settle(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return sequence, nil
}

// running returns the server. The server writes nothing any more after a write has
// failed, and answers nothing either; then running starts it anew, if the disk has
// room for need bytes at least.
func (l *Log) running(need int) (*node, error) {
	n, _ := l.now()
	if !n.broken || l.lead != nil { // a member's server is not the log's to start
		return n, nil
	}
	n.stop() // the last write ends, or fails
	if l.options.Sync && n.log.unsynced() {
		// What the failed fsync should have written is gone from the cache or looks as
		// if it were written: reading it back proves nothing.
		return nil, fmt.Errorf("%w: %w", ErrLost, n.log.failure())
	}
	if err := l.folder.probe(need); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n, err := start(ctx, l.folder, l.options, false)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node = n
	l.stats.Restarts++
	return n, nil
}

// stored takes note of a message that is in the log.
func (l *Log) stored(at position, message []byte, begin time.Time) {
	l.mu.Lock()
	l.stats.Messages++
	l.stats.Bytes += int64(len(message)) + overhead
	l.stats.Syncs.Add(time.Since(begin))
	l.mu.Unlock()
	l.succeed(at, begin)
}

// succeed takes note of a message that was acknowledged. The attempts to write it have
// begun at the time.
func (l *Log) succeed(at position, begin time.Time) {
	l.mu.Lock()
	recovered := l.trouble != nil
	l.trouble = nil
	l.at = at
	if l.lead != nil {
		l.lead.sure, l.lead.heard = begin, time.Now()
	}
	l.mu.Unlock()
	if recovered {
		l.options.Logger.Info("the log takes records again", "dir", l.options.Dir)
	}
}

// fail takes note of a failed attempt.
func (l *Log) fail(err error) {
	if errors.Is(err, ErrClosed) {
		return // it was ended by Close
	}
	l.mu.Lock()
	known := l.trouble != nil && l.trouble.Error() == err.Error()
	l.trouble = err
	if errors.Is(err, ErrLost) {
		l.loseLocked(err)
	}
	l.mu.Unlock()
	if !known && !(l.lead != nil && errors.Is(err, ErrLost)) { // that is no failure
		l.options.Logger.Error("the log takes no records", "dir", l.options.Dir, "err", err)
	}
}

// loseLocked ends the log for this process.
func (l *Log) loseLocked(err error) {
	if l.lost != nil {
		return
	}
	l.lost = err
	close(l.gone)
	l.abortLocked()
	if l.lead != nil && !l.closing {
		l.options.Logger.Warn("this node leads no more", "term", l.lead.term, "why", err)
	}
}

// finish accounts for a pack that was written or given up, and calls back.
func (l *Log) finish(p *pack, err error) {
	l.mu.Lock()
	if p.kind != kindRefused {
		l.waiting -= p.records
		l.waitingBytes -= p.bytes
	}
	if err == nil {
		l.stats.Records += int64(p.records)
	} else if errors.Is(err, ErrClosed) {
		l.unwritten += p.records
	}
	l.mu.Unlock()
	for _, done := range p.dones {
		if done != nil {
			done(err)
		}
	}
	if p.kind == kindPack {
		l.mu.Lock()
		l.spare = p.message
		l.mu.Unlock()
	}
}

// isSync reports whether err is that of an fsync.
func isSync(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && path.Op == "sync"
}
