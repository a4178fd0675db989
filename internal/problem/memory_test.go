package problem

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"holdfast/internal/budget"
)

// counting is a body that counts what was read of it.
type counting struct {
	io.Reader
	read int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.read += int64(n)
	return n, err
}

func (c *counting) Close() error { return nil }

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A body for which there is no memory is refused before it is read to its end: one of a
// known length before its first byte, so that 100 Continue is not sent.
func TestNoMemory(t *testing.T) {
	for _, c := range []struct {
		name   string
		length int64
		most   int64 // that may be read
	}{{"declared", 500_000, 0}, {"chunked", -1, 100_000}} {
		b := budget.New(100_000, nil, func() int { return 7 })
		var hold budget.Hold
		hold.Open(b, 0)
		body := &counting{Reader: endless{}}
		r := httptest.NewRequest("POST", "/", body)
		r.ContentLength = c.length
		w := httptest.NewRecorder()
		if _, ok := ReadBodyInto(&hold, w, r, 1<<20); ok {
			t.Errorf("%s: 500,000 bytes fit into 100,000", c.name)
		}
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "7" || b.Refused() != 1 {
			t.Errorf("%s: %d, Retry-After %q, %d refused", c.name, w.Code, w.Header().Get("Retry-After"), b.Refused())
		}
		if body.read > c.most {
			t.Errorf("%s: %d bytes were read, want at most %d", c.name, body.read, c.most)
		}
		if b.Held() != 0 {
			t.Errorf("%s: %d bytes are held for a request that was refused", c.name, b.Held())
		}
	}
}

// A body counts what it takes: not twice, as what grows would, and until it is given away.
func TestBodyIsCounted(t *testing.T) {
	for _, length := range []int64{50_000, -1} {
		b := budget.New(1<<20, nil, nil)
		var hold, job budget.Hold
		hold.Open(b, 0)
		job.Open(b, 0)
		data := bytes.Repeat([]byte("d"), 50_000)
		r := httptest.NewRequest("POST", "/", io.MultiReader(bytes.NewReader(data)))
		r.ContentLength = length
		got, ok := ReadBodyInto(&hold, httptest.NewRecorder(), r, 1<<20)
		if !ok || !bytes.Equal(got, data) {
			t.Fatal("the body is not what was sent")
		}
		if held := b.Held(); held < int64(cap(got)) || held > int64(cap(got))+1 {
			t.Errorf("length %d: %d bytes are held, the body has %d", length, held, cap(got))
		}
		Give(r, &job)
		Forget(r)
		if hold.Close(); b.Held() < 50_000 {
			t.Errorf("length %d: %d bytes are held for the job", length, b.Held())
		}
		if job.Close(); b.Held() != 0 {
			t.Errorf("length %d: %d bytes are held at the end", length, b.Held())
		}
	}
}
