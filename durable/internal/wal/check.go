package wal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
)

// maxProblems is how many problems a Summary lists.
const maxProblems = 100

// A Summary is what Check has found in a folder.
type Summary struct {
	Messages int64 // of which Packs hold records, and Parts parts of one
	Packs    int64
	Parts    int64
	Records  int64
	Bytes    int64 // of the messages

	FirstSequence, LastSequence uint64    // 0 if there is no message
	First, Last                 time.Time // when those messages were written

	// Incomplete records were cut off by a crash before they were acknowledged. That
	// is no problem.
	Incomplete int

	// Problems are what is wrong, a line each, the first 100 of them.
	Problems []string
}

// Check reads the log in the folder dir and calls f, if it is not nil, with each
// record that it can read, in their order. The slice is f's during the call alone. An
// error of f ends it. The folder is locked meanwhile. Check changes no record, but the
// server that it starts rewrites its own index, and cuts a file off where it finds it
// damaged: a folder that matters is copied first. Check returns an error if the log
// cannot be read at all; what is wrong within it is in the Summary. It blocks; ctx
// ends it.
func Check(ctx context.Context, dir string, f func(record []byte) error) (Summary, error) {
	s, err := check(ctx, dir, f)
	if err != nil {
		return s, fmt.Errorf("wal: check %s: %w", dir, err)
	}
	return s, nil
}

func check(ctx context.Context, dir string, f func(record []byte) error) (Summary, error) {
	if _, err := os.Stat(dir); err != nil {
		return Summary{}, err
	}
	folder, err := lockFolder(dir)
	if err != nil {
		return Summary{}, err
	}
	defer folder.close()
	if err := folder.checkAlone(); err != nil {
		return Summary{}, err
	}
	if err := folder.checkFormat(false); err != nil {
		return Summary{}, err
	}
	c := &checker{f: f}
	o := Options{Dir: dir, Sync: true, Logger: slog.New(slog.DiscardHandler)}
	n, err := start(ctx, folder, o, false)
	if err != nil {
		return Summary{}, err
	}
	defer n.stop()
	err = c.run(ctx, n)
	c.Incomplete = c.decoder.incomplete
	return c.Summary, err
}

// A checker goes on where Replay ends with an error.
type checker struct {
	Summary
	f       func(record []byte) error
	decoder decoder
}

func (c *checker) run(ctx context.Context, n *node) error {
	s, err := n.state(ctx)
	if bad := new(badMessage); errors.As(err, &bad) {
		// The last message says where the log begins. Without it the beginning that is
		// stored has to do.
		s.at.prev, s.at.first, err = bad.sequence, s.firstStored, nil
	}
	if err != nil {
		return err
	}
	c.Bytes, c.LastSequence = s.bytes, s.at.prev
	if s.at.prev == 0 {
		return nil
	}
	if s.at.last > s.at.prev {
		c.problem(fmt.Sprintf("the end of the log is missing: there was a message %d, and the last one is %d", s.at.last, s.at.prev))
	}
	c.decoder = decoder{first: s.at.first, warn: c.problem}
	err = n.scan(ctx, max(s.at.first, 1), s.at.prev, c.message)
	if errors.Is(err, errNotThere) {
		c.problem(err.Error())
		err = nil
	}
	return err
}

func (c *checker) message(m message) error {
	c.Messages++
	if c.FirstSequence == 0 {
		c.FirstSequence, c.First = m.sequence, m.time
	}
	c.Last = m.time
	h, _, err := parse(m.data)
	if err == nil {
		switch h.kind {
		case kindPack:
			c.Packs++
		case kindPart:
			c.Parts++
		}
	}
	err = c.decoder.message(m, c.record)
	if errors.Is(err, errMissing) { // the message itself may be read
		c.problem(err.Error())
		c.decoder.drop()
		c.decoder.prev, c.decoder.first, c.decoder.torn = h.prev, 0, true
		err = c.decoder.message(m, c.record)
	}
	if bad := new(badMessage); errors.As(err, &bad) {
		c.problem(bad.Error())
		c.decoder.drop()
		c.decoder.prev, c.decoder.torn, err = m.sequence, true, nil
	}
	return err
}

func (c *checker) record(record []byte) error {
	c.Records++
	if c.f == nil {
		return nil
	}
	return c.f(record)
}

func (c *checker) problem(text string) {
	if len(c.Problems) < maxProblems {
		c.Problems = append(c.Problems, text)
	}
}
