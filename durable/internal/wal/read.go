package wal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// batch is how many messages are asked for at once: 16 MiB of parts.
	batch = 64

	// patience is how many times a batch may stay empty, a second each.
	patience = 15
)

var (
	errEnough   = errors.New("enough") // ends a scan without an error
	errNotThere = errors.New("the log's server does not deliver it")
)

// scan calls f with the messages from one sequence to another, which exists, in their
// order. An error of f ends it. The data is f's during the call alone. It uses a
// connection of its own, so that an append need not wait for what is read.
func (n *node) scan(ctx context.Context, from, to uint64, f func(message) error) error {
	conn, err := n.dialer()
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithDefaultTimeout(n.wait))
	if err != nil {
		return err
	}
	// Reading by sequence would be simpler, but answers in JSON, and takes five times as long.
	consumer, err := js.CreateConsumer(ctx, n.names.stream, jetstream.ConsumerConfig{
		FilterSubject:     n.names.subject,
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return err
	}
	defer deleteConsumer(ctx, js, n.names.stream, consumer.CachedInfo().Name)
	for next, empty := from, 0; next <= to; {
		after, err := scanBatch(ctx, consumer, next, to, f)
		switch {
		case errors.Is(err, errEnough):
			return nil
		case err != nil:
			return err
		case after > next:
			next, empty = after, 0
		case empty == patience || conn.IsClosed():
			return fmt.Errorf("message %d: %w", next, errNotThere)
		default:
			empty++
		}
	}
	return nil
}

// scanBatch is like scan, for the next batch. It returns the sequence after it.
func scanBatch(ctx context.Context, consumer jetstream.Consumer, next, to uint64, f func(message) error) (uint64, error) {
	b, err := consumer.FetchNoWait(batch)
	if err != nil {
		return next, err
	}
	for m := range b.Messages() {
		if err := ctx.Err(); err != nil {
			return next, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return next, err
		}
		if meta.Sequence.Stream > to {
			return next, fmt.Errorf("message %d: %w", to, errNotThere)
		}
		err = f(message{
			sequence: meta.Sequence.Stream, time: meta.Timestamp, term: termOf(m.Headers().Get(jetstream.MsgIDHeader)), data: m.Data(), size: int64(len(m.Data())) + overhead,
		})
		if err != nil {
			return next, err
		}
		next = meta.Sequence.Stream + 1
		if next > to {
			break
		}
	}
	return next, b.Error()
}

// deleteConsumer deletes a consumer that would go after a minute by itself. It does not
// wait long for a cluster that has no leader.
func deleteConsumer(ctx context.Context, js jetstream.JetStream, stream, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	js.DeleteConsumer(ctx, stream, name)
}
