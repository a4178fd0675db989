package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// A groupLog appends records to a file. A record is on disk when it is said to be: one
// fsync is for all records that have come while the one before ran. Waiting a little for
// more would cost those who wait, and gain nothing.
type groupLog struct {
	file syncFile
	wake chan struct{} // append tells commit that there is a batch; room for one

	mu   sync.Mutex // protects the following fields
	next *batch
	err  error // the first of the file; nothing is written after it

	stopped chan struct{} // closed when commit has returned
}

type syncFile interface {
	io.WriteCloser
	Sync() error
}

// A batch is the records of one fsync.
type batch struct {
	records   []byte
	then      []func()      // called when the records are on disk
	committed chan struct{} // closed after err was set
	err       error
}

func newBatch() *batch { return &batch{committed: make(chan struct{})} }

func newGroupLog(file syncFile) *groupLog {
	l := &groupLog{file: file, wake: make(chan struct{}, 1), next: newBatch(), stopped: make(chan struct{})}
	go l.commit()
	return l
}

// append appends a record and returns when it is on disk, or cannot be written.
func (l *groupLog) append(record []byte) error {
	b := l.add(record, nil)
	<-b.committed
	return b.err
}

// appendThen appends a record, and calls then when it is on disk. It does not wait.
func (l *groupLog) appendThen(record []byte, then func()) { l.add(record, then) }

func (l *groupLog) add(record []byte, then func()) *batch {
	l.mu.Lock()
	b := l.next
	b.records = binary.LittleEndian.AppendUint32(b.records, uint32(len(record)))
	b.records = binary.LittleEndian.AppendUint32(b.records, crc32.Checksum(record, castagnoli))
	b.records = append(b.records, record...)
	if then != nil {
		b.then = append(b.then, then)
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default: // commit has not looked since the last one
	}
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// commit writes one batch after the other, until wake is closed.
func (l *groupLog) commit() {
	defer close(l.stopped)
	for range l.wake {
		l.mu.Lock()
		b := l.next
		l.next = newBatch()
		b.err = l.err
		l.mu.Unlock()
		if b.err == nil && len(b.records) > 0 {
			b.err = l.write(b.records)
		}
		close(b.committed)
		if b.err != nil {
			l.mu.Lock()
			l.err = b.err
			l.mu.Unlock()
			continue
		}
		for _, f := range b.then {
			f()
		}
	}
}

func (l *groupLog) write(records []byte) error {
	if _, err := l.file.Write(records); err != nil {
		return err
	}
	return l.file.Sync()
}

// close ends commit and closes the file. Nothing may be appended any more.
func (l *groupLog) close() error {
	close(l.wake)
	<-l.stopped
	return l.file.Close()
}

// plain is a queue in memory, with a log beside it. It is the limit of what can be
// reached with net/http and one file: it does not read its log after a restart, forgets
// nothing, and has no bound.
type plain struct {
	log   *groupLog // nil: nothing is on disk
	front *front
	jobs  chan string // ids of those that wait; nil if there are no workers

	mu      sync.Mutex        // protects the following field
	results map[string][]byte // nil for those that have not ended
}

// The kinds of records.
const (
	accepted = 'a' // followed by the id and the body
	finished = 'e' // followed by the id and the response
)

func openPlain(_ context.Context, dir string, workers int) (*service, error) {
	file, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return servePlain(newGroupLog(file), workers), nil
}

// openMemory shows what net/http and the load generator reach on this machine.
func openMemory(_ context.Context, _ string, workers int) (*service, error) {
	return servePlain(nil, workers), nil
}

func servePlain(log *groupLog, workers int) *service {
	p := &plain{log: log, front: newFront(), results: make(map[string][]byte)}
	if workers > 0 {
		p.jobs = make(chan string, places)
	}
	var running sync.WaitGroup
	for range workers {
		running.Go(p.work)
	}
	return &service{p.front.handler(p), func(context.Context) error {
		if p.jobs != nil {
			close(p.jobs)
		}
		running.Wait()
		if log == nil {
			return nil
		}
		return log.close()
	}}
}

func (p *plain) accept(_ context.Context, body []byte) (string, error) {
	id := rand.Text()
	if p.log != nil {
		if err := p.log.append(append([]byte{accepted}, id+string(body)...)); err != nil {
			return "", err
		}
	}
	p.mu.Lock()
	p.results[id] = nil
	p.mu.Unlock()
	if p.jobs != nil {
		p.jobs <- id
	}
	return id, nil
}

// work runs jobs. It does not wait until an end is on disk, and begins the next.
func (p *plain) work() {
	for id := range p.jobs {
		response := []byte(outcome)
		end := func() {
			p.mu.Lock()
			p.results[id] = response
			p.mu.Unlock()
			p.front.ended(id)
		}
		if p.log == nil {
			end()
			continue
		}
		p.log.appendThen(append([]byte{finished}, id+outcome...), end)
	}
}

func (p *plain) result(_ context.Context, id string) ([]byte, stage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	response, ok := p.results[id]
	switch {
	case !ok:
		return nil, open, errUnknown
	case response == nil:
		return nil, open, nil
	}
	return response, done, nil
}
