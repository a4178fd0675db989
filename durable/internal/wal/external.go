package wal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// join connects to external servers.
func (m *Member) join(ctx context.Context) (err error) {
	if m.options.Sync {
		if err := m.askSync(ctx); err != nil {
			return err
		}
	}
	m.dialer = func() (*nats.Conn, error) { return m.dialURL(m.cluster.URL, m.cluster.Creds) }
	if m.conn, err = m.dialer(); err != nil {
		return err
	}
	if n := m.conn.MaxPayload(); n < maxMessage {
		return fmt.Errorf("the server takes messages of %d bytes; want max_payload %d or more", n, maxMessage)
	}
	return nil
}

func (m *Member) dialURL(url, creds string) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name("holdfast " + m.cluster.Name + " " + m.cluster.Node), nats.Timeout(answerTime), m.warn(),
		nats.MaxReconnects(-1), nats.ReconnectWait(stepTime / 4),
		nats.ReconnectBufSize(-1), // an append is repeated by the log, which knows whether it should be
		nats.PingInterval(2 * time.Second), nats.MaxPingsOutstanding(2),
	}
	if creds != "" {
		options = append(options, nats.UserCredentials(creds))
	}
	conn, err := nats.Connect(url, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return conn, nil
}

var errNoSync = errors.New("want jetstream { sync_interval: always } there, or no sync here, which loses acknowledged jobs at a power failure")

// askSync asks the servers whether they sync each write. Only their system account is
// told.
func (m *Member) askSync(ctx context.Context) error {
	if m.cluster.System == "" {
		return fmt.Errorf("the external servers cannot be asked whether they sync each write, since there is no URL with a user of their system account: %w", errNoSync)
	}
	conn, err := m.dialURL(m.cluster.System, m.cluster.SystemCreds)
	if err != nil {
		return err
	}
	defer conn.Close()
	answers := make(chan *nats.Msg, 64)
	inbox := conn.NewInbox()
	if _, err := conn.ChanSubscribe(inbox, answers); err != nil {
		return err
	}
	if err := conn.PublishRequest("$SYS.REQ.SERVER.PING.JSZ", inbox, nil); err != nil {
		return err
	}
	servers := 0
	for late := time.After(2 * stepTime); ; {
		select {
		case m := <-answers:
			storing, err := checkSync(m)
			if err != nil {
				return err
			}
			if storing {
				servers++
			}
		case <-late:
			if servers == 0 {
				return fmt.Errorf("no external server with JetStream has said whether it syncs each write; is the user one of the system account? %w", errNoSync)
			}
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkSync reports whether the answer is that of a server that stores messages, and
// returns an error if it does not sync them.
func checkSync(m *nats.Msg) (storing bool, err error) {
	var answer struct {
		Server struct {
			Name string `json:"name"`
		} `json:"server"`
		Data struct {
			Disabled bool `json:"disabled"`
			Config   struct {
				SyncAlways bool `json:"sync_always"`
			} `json:"config"`
		} `json:"data"`
	}
	if m.Header.Get("Status") != "" { // nobody listens
		return false, nil
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return false, fmt.Errorf("an external server has answered %.100q: %w", m.Data, err)
	}
	if answer.Server.Name == "" || answer.Data.Disabled {
		return false, nil
	}
	if !answer.Data.Config.SyncAlways {
		return false, fmt.Errorf("the external server %s does not sync each write: %w", answer.Server.Name, errNoSync)
	}
	return true, nil
}
