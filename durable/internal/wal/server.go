package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName = "HOLDFAST"
	subject    = "holdfast.log"

	// overhead is about what a message takes on disk beside its data.
	overhead = 140

	// answerTime is how long an answer of the server is waited for. A disk may take
	// longer; then the message is looked for.
	answerTime = 5 * time.Second

	// grace is how long an answer is waited for after the server has logged an error.
	// It does not answer a message that it could not write.
	grace = 250 * time.Millisecond

	// silences is after how many missing answers the server is started anew.
	silences = 3
)

var errConflict = errors.New("the log ends at another sequence")

// Names are those of a log within a server.
type names struct {
	stream, subject string
	lease           string // the subject of the messages that say that the leader lives; none if one process writes
}

// alone are the names of a log that no other process shares.
var alone = names{stream: streamName, subject: subject}

// A node is a server in this process and the writer's connection to it, or the
// connection alone if the server is a member of a cluster.
type node struct {
	names  names
	server *server.Server // nil: it is not the log's to stop
	dialer func() (*nats.Conn, error)
	wait   time.Duration // how long an answer is waited for
	log    *serverLog
	conn   *nats.Conn
	stream jetstream.Stream

	// The writer's alone.
	inbox    string         // the beginning of the subjects of answers
	answers  chan *nats.Msg // the connection sends
	attempts uint64
	silent   int  // answers that are missing, one after the other
	broken   bool // the server has to be started anew
}

// start starts a server on the folder. With create it makes the stream if there is
// none.
func start(ctx context.Context, f *folder, o Options, create bool) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "holdfast",

		// No listener of any kind, and no hand on the signals of the process.
		DontListen: true,
		NoSigs:     true,

		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               f.dir,
		SyncAlways:             o.Sync,
		SyncInterval:           syncInterval(o.Sync),
		MaxPayload:             maxMessage,

		// The disk itself is the limit: what the server measures at its start is
		// outdated when it counts.
		JetStreamMaxStore:  1 << 50,
		JetStreamMaxMemory: 64 << 20,
	})
	if err != nil {
		return nil, err
	}
	n := &node{names: alone, server: s, wait: answerTime, log: newServerLog(o.Logger)}
	n.dialer = n.dialServer
	s.SetLoggerV2(n.log, false, false, false)
	if err := n.connect(ctx, f, create); err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

// maxMessage is the greatest length of a message's data and headers.
const maxMessage = headerSize + maxPart + 4<<10

// syncInterval returns how often the server syncs in the background, and tidies up.
func syncInterval(sync bool) time.Duration {
	if sync {
		return 2 * time.Minute
	}
	return time.Second
}

func (n *node) connect(ctx context.Context, f *folder, create bool) error {
	n.server.Start() // returns when the streams are there
	if err := n.log.fatal(); err != nil {
		return err
	}
	if !n.server.ReadyForConnections(answerTime) {
		return fmt.Errorf("the server has not started: %w", n.log.failure())
	}
	if err := n.listen(); err != nil {
		return err
	}
	return n.openStream(ctx, f, create)
}

// listen connects, and subscribes to the answers that publish waits for.
func (n *node) listen() (err error) {
	if n.conn, err = n.dialer(); err != nil {
		return err
	}
	n.inbox = n.conn.NewInbox() + "."
	n.answers = make(chan *nats.Msg, 16)
	_, err = n.conn.ChanSubscribe(n.inbox+"*", n.answers)
	return err
}

// dialServer returns a connection of its own to the server.
func (n *node) dialServer() (*nats.Conn, error) {
	return nats.Connect("", nats.InProcessServer(n.server), nats.NoReconnect(), nats.Timeout(answerTime),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			n.log.logger.Warn("the connection to the log's server has an error", "err", err)
		}))
}

func (n *node) openStream(ctx context.Context, f *folder, create bool) error {
	js, err := jetstream.New(n.conn)
	if err != nil {
		return err
	}
	n.stream, err = js.Stream(ctx, streamName)
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	// The server starts without a stream that it cannot read. A new one in its place
	// would be an empty log.
	if !create || f.hasMessages() {
		return fmt.Errorf("the log's messages cannot be read: %w", n.log.failure())
	}
	n.stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
		Name:       streamName,
		Subjects:   []string{subject},
		Storage:    jetstream.FileStorage,
		Replicas:   1,
		Retention:  jetstream.LimitsPolicy,
		Discard:    jetstream.DiscardNew,
		Duplicates: 30 * time.Second,
		MaxMsgSize: maxMessage,
		DenyDelete: true, // only what lies before a sequence, by a purge
	})
	return err
}

// stop stops the server. It may be called again.
func (n *node) stop() {
	if n.conn != nil {
		n.conn.Close()
	}
	if n.server != nil {
		n.server.Shutdown()
		n.server.WaitForShutdown()
	}
}

// A state is what a stream has.
type state struct {
	at              position
	firstStored     uint64 // may be less than at.first, after a deletion that was interrupted
	messages, bytes int64
	term            uint64 // of the last message; 0 if one process writes
	writer          string // begins the ids of whoever wrote it
	released        bool   // the leader of that term has given up
}

func (n *node) state(ctx context.Context) (state, error) {
	info, err := n.stream.Info(ctx)
	if err != nil {
		return state{}, err
	}
	s := state{
		at:          position{last: info.State.LastSeq},
		firstStored: info.State.FirstSeq,
		messages:    int64(info.State.Msgs),
		bytes:       int64(info.State.Bytes),
	}
	last, err := n.lastMessage(ctx, n.names.subject)
	if err == nil && last == nil && s.messages > 0 { // it is damaged: that is no empty log
		err = &badMessage{s.at.last, errors.New("cannot be read")}
	}
	if err != nil || last == nil {
		return s, err
	}
	h, _, err := parse(last.Data)
	if err != nil {
		return s, &badMessage{last.Sequence, err}
	}
	s.at.prev, s.at.first = last.Sequence, h.first
	id := last.Header.Get(jetstream.MsgIDHeader)
	s.term, s.released = termOf(id), h.kind == kindEnd
	s.writer, _, _ = strings.Cut(id, "-")
	return s, nil
}

// lastMessage returns the last message of the subject, or nil if there is none or it is
// damaged.
func (n *node) lastMessage(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	m, err := n.stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	return m, err
}

// publish writes a message and returns its sequence. It fails with errConflict if the
// stream's last sequence is not last, perhaps because an earlier attempt has got
// through.
func (n *node) publish(id string, last uint64, data []byte, abort <-chan struct{}) (uint64, error) {
	return n.publishMsg(n.message(n.names.subject, id, last, data), abort)
}

// message returns a message that is stored if the sequence before it is last.
func (n *node) message(subject, id string, last uint64, data []byte) *nats.Msg {
	m := nats.NewMsg(subject)
	m.Header[jetstream.MsgIDHeader] = []string{id}
	m.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(last, 10)}
	m.Data = data
	return m
}

func (n *node) publishMsg(m *nats.Msg, abort <-chan struct{}) (uint64, error) {
	n.attempts++
	m.Reply = n.inbox + strconv.FormatUint(n.attempts, 10)
	if err := n.conn.PublishMsg(m); err != nil {
		n.broken = true
		return 0, err
	}
	timer := time.NewTimer(n.wait)
	defer timer.Stop()
	failed := n.log.failed
	var late <-chan time.Time
	for {
		select {
		case answer := <-n.answers:
			if answer.Subject != m.Reply {
				continue // to an attempt that was given up
			}
			n.silent = 0
			return n.answer(answer)
		case <-failed:
			failed, late = nil, time.After(grace)
		case <-late:
			n.broken = true
			return 0, n.log.failure()
		case <-timer.C:
			n.silent++
			n.broken = n.silent >= silences || n.conn.IsClosed()
			return 0, fmt.Errorf("the log's server has not answered within %v", n.wait)
		case <-abort:
			return 0, ErrClosed
		}
	}
}

// answer returns the sequence, or the error, that the server has answered with.
func (n *node) answer(m *nats.Msg) (uint64, error) {
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" { // nobody listens to the subject
		n.broken = true
		return 0, fmt.Errorf("the log's server has closed the log: %w", n.log.failure())
	}
	var answer struct {
		Seq   uint64              `json:"seq"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return 0, fmt.Errorf("the log's server has answered %.100q: %w", m.Data, err)
	}
	if answer.Error == nil {
		return answer.Seq, nil
	}
	switch answer.Error.ErrorCode {
	case 10071, 10164, 10158: // wrong last sequence; the same on several nodes; the same id is under way
		return 0, errConflict
	}
	return 0, answer.Error
}

// find returns the sequence of the message with the id, which is the last one of its
// subject if it has got through. If it has not, and the log does not end where it should
// go either, the log is lost.
func (n *node) find(subject, id string, expected uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), n.wait)
	defer cancel()
	last, err := n.lastMessage(ctx, subject)
	if err != nil {
		return 0, err
	}
	if last != nil && last.Header.Get(jetstream.MsgIDHeader) == id {
		return last.Sequence, nil
	}
	info, err := n.stream.Info(ctx)
	if err != nil {
		return 0, err
	}
	if info.State.LastSeq == expected {
		return 0, errConflict // which has gone, so the next attempt may succeed
	}
	if n.names.lease != "" && info.State.LastSeq < expected {
		// A replica that has just come to lead has yet to apply what was acknowledged. No
		// other writer has been there: sequences only grow.
		return 0, errConflict
	}
	return 0, fmt.Errorf("%w: it ends at sequence %d, and this process has written up to %d", ErrLost, info.State.LastSeq, expected)
}

// purge deletes what lies before the sequence.
func (n *node) purge(ctx context.Context, first uint64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return n.stream.Purge(ctx, jetstream.WithPurgeSequence(first))
}

// A serverLog passes the warnings and errors of a server on, and remembers the last.
type serverLog struct {
	logger *slog.Logger
	failed chan struct{} // has room for one; receives when the server has logged an error

	mu      sync.Mutex // protects the following fields
	last    error
	dead    error // the server has given up
	badSync bool
	told    time.Time // of the last line about routes
}

func newServerLog(logger *slog.Logger) *serverLog {
	return &serverLog{logger: logger, failed: make(chan struct{}, 1)}
}

func (s *serverLog) note(format string, v []any) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = errors.New(strings.TrimSpace(fmt.Sprintf(format, v...)))
	for _, arg := range v {
		if err, ok := arg.(error); ok {
			s.last = err // says the same without the server's own words
			s.badSync = s.badSync || isSync(err)
		}
	}
	return strings.TrimSpace(fmt.Sprintf(format, v...))
}

// failure returns the last error or warning.
func (s *serverLog) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		return errors.New("the log's server gives no reason")
	}
	return s.last
}

// fatal returns why the server has given up, or nil.
func (s *serverLog) fatal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// unsynced reports whether an fsync has failed.
func (s *serverLog) unsynced() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.badSync
}

// Noticef, Warnf and the other methods implement server.Logger.
func (s *serverLog) Noticef(string, ...any) {}

func (s *serverLog) Debugf(string, ...any) {}

func (s *serverLog) Tracef(string, ...any) {}

func (s *serverLog) Warnf(format string, v ...any) {
	s.logger.Warn(s.note(format, v), "from", "nats")
}

func (s *serverLog) Errorf(format string, v ...any) {
	s.logger.Error(s.note(format, v), "from", "nats")
	select {
	case s.failed <- struct{}{}:
	default:
	}
}

func (s *serverLog) Fatalf(format string, v ...any) {
	s.Errorf(format, v...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = s.last
}
