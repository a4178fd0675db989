package wal

import (
	"context"
	"fmt"
)

// Clean shortens the log. For the records in its oldest part, about limit bytes of
// messages and at least one record, it calls copyIfAlive, which appends a copy of the
// record if it is still needed; it does so under the lock that decides, so that the
// copy stands behind whatever the record must follow. When all copies are written,
// that part is deleted, and Clean returns the bytes that it had. The slice is
// copyIfAlive's during the call alone.
//
// A pass goes to where the end of the log was when it began, and then the next one
// begins, so Clean does not run after its own copies. Clean blocks. ctx ends it and
// loses nothing, but the copies may stand in the log beside what they were made of.
// A second call waits for the first one. Clean is used after Replay.
func (l *Log) Clean(ctx context.Context, limit int64, copyIfAlive func(record []byte)) (freed int64, err error) {
	l.cleaning.Lock()
	defer l.cleaning.Unlock()
	if err := l.Err(); err != nil {
		return 0, fmt.Errorf("wal: clean %s: %w", l.options.Dir, err)
	}
	n, at := l.now()
	from := max(at.first, 1)
	if l.passEnd < from {
		l.passEnd = at.prev
	}
	h, err := l.head(ctx, n, at, limit, copyIfAlive)
	if err == nil && h.cut == 0 && l.passEnd < at.prev {
		// The pass had ended within the parts of a record.
		l.passEnd = at.prev
		h, err = l.head(ctx, n, at, limit, copyIfAlive)
	}
	if err == nil && h.cut > 0 {
		err = l.cut(ctx, n, h)
	}
	if err != nil {
		return 0, fmt.Errorf("wal: clean %s: %w", l.options.Dir, err)
	}
	return h.bytes, nil
}

// A head is the part of the log that a call of Clean has read.
type head struct {
	cut                      uint64 // the sequence after it; 0: it is empty
	bytes, messages, records int64
}

// head reads up to limit bytes of messages, but no record in part.
func (l *Log) head(ctx context.Context, n *node, at position, limit int64, f func([]byte)) (h head, err error) {
	from := max(at.first, 1)
	if l.passEnd < from {
		return head{}, nil
	}
	d := decoder{first: at.first, warn: func(string) {}} // Replay has warned
	read := head{}
	err = l.scan(ctx, n, from, l.passEnd, func(m message) error {
		err := d.message(m, func(record []byte) error {
			read.records++
			f(record)
			return nil
		})
		if err != nil {
			return err
		}
		read.cut = m.sequence + 1
		read.messages++
		read.bytes += m.size
		if !d.whole() {
			return nil
		}
		h = read
		if h.bytes >= limit {
			return errEnough
		}
		return nil
	})
	return h, err
}

// cut deletes the head. First a mark says where the log begins, behind the copies and
// on disk before anything is deleted: a crash in the middle of the deletion must not
// bring a part of the head back.
func (l *Log) cut(ctx context.Context, n *node, h head) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case err := <-l.mark(h):
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	if l.folder != nil && !l.options.Sync {
		// What is deleted may be on disk for long. The copies must not be lost for it.
		if err := l.folder.sync(); err != nil {
			return err
		}
	}
	if err := n.purge(ctx, h.cut); err != nil {
		return err
	}
	return l.measure(ctx, n)
}

// mark appends a mark behind the copies. Its result has room for the error.
func (l *Log) mark(h head) <-chan error {
	marked := make(chan error, 1)
	p := newPack(nil)
	p.kind, p.cut = kindMark, h.cut
	p.dones = []func(error){func(err error) {
		if err == nil {
			l.mu.Lock()
			l.stats.Records -= h.records
			l.mu.Unlock()
		}
		marked <- err
	}}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing { // the writer may have ended
		marked <- ErrClosed
		return marked
	}
	l.queue = append(l.queue, p)
	l.work.Signal()
	return marked
}

// measure asks the server for the size of the log.
func (l *Log) measure(ctx context.Context, n *node) error {
	info, err := n.stream.Info(ctx)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Messages, l.stats.Bytes = int64(info.State.Msgs), int64(info.State.Bytes)
	return nil
}
