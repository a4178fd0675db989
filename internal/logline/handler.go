package logline

import (
	"bytes"
	"context"
	"encoding"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MostValue is how many bytes of a value are logged. Clients choose paths, hosts
	// and much of what stands in errors.
	MostValue = 512

	// MostText is how many bytes of a message, or of a value under the key stack, are
	// logged: a stack that is cut shorter leaves out who called.
	MostText = 8 << 10
)

// A Handler writes a record as one line, as the log package and slog's default
// handler do: the time, the level, the message, and the attributes as key=value.
// Unlike them it bounds what it writes, and quotes what would be a line of its own.
type Handler struct {
	out  io.Writer
	with []func(slog.Handler) slog.Handler // of WithAttrs and WithGroup
}

// NewHandler returns a Handler of records from Info on. It writes each with one call
// to out, which has to bear calls from several goroutines at once.
func NewHandler(out io.Writer) *Handler { return &Handler{out: out} }

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.also(func(text slog.Handler) slog.Handler { return text.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return h.also(func(text slog.Handler) slog.Handler { return text.WithGroup(name) })
}

func (h *Handler) also(f func(slog.Handler) slog.Handler) slog.Handler {
	return &Handler{h.out, append(h.with[:len(h.with):len(h.with)], f)}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	// The attributes are formatted by a TextHandler, which begins each line so:
	const begins = "level=INFO msg=-"
	plain := slog.NewRecord(time.Time{}, slog.LevelInfo, "-", 0)
	message, more, _ := strings.Cut(r.Message, "\n") // as net/http's of a panic
	if more != "" {
		plain.AddAttrs(slog.String("stack", more))
	}
	r.Attrs(func(a slog.Attr) bool {
		plain.AddAttrs(a)
		return true
	})
	var attrs bytes.Buffer
	var text slog.Handler = slog.NewTextHandler(&attrs, &slog.HandlerOptions{ReplaceAttr: cut})
	for _, with := range h.with {
		text = with(text)
	}
	if err := text.Handle(ctx, plain); err != nil {
		return err
	}
	line := r.Time.AppendFormat(nil, "2006/01/02 15:04:05 ")
	line = append(line, r.Level.String()...)
	line = append(line, ' ')
	line = append(line, printable(shorten(message, MostText))...)
	line = append(line, bytes.TrimPrefix(attrs.Bytes(), []byte(begins))...)
	_, err := h.out.Write(line)
	return err
}

// printable quotes a message that would not look like one.
func printable(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(s)
	}
	return s
}

// cut is the ReplaceAttr that bounds a value.
func cut(_ []string, a slog.Attr) slog.Attr {
	most := MostValue
	if a.Key == "stack" {
		most = MostText
	}
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(shorten(a.Value.String(), most))
	case slog.KindAny:
		a.Value = slog.StringValue(shorten(render(a.Value.Any()), most))
	}
	return a
}

// render returns the text of a value as a TextHandler does. A panic of one of its
// methods is part of the text: where a log line is written nobody recovers. Package
// fmt sees to its own.
func render(v any) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprintf("!PANIC: %v", p)
		}
	}()
	switch v := v.(type) {
	case encoding.TextMarshaler:
		marshaled, err := v.MarshalText()
		if err != nil {
			return "!ERROR: " + err.Error()
		}
		return string(marshaled)
	case []byte:
		return string(v)
	}
	return fmt.Sprintf("%+v", v)
}

// shorten returns at most so many bytes of s, and how many there were if that is not
// all.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	end := most
	for end > most-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:end], len(s))
}
