package conns

import (
	"bytes"
	"io"
)

// MaxHeaderLines is how many lines the header of a request may have. A line takes
// far more memory than it has bytes: 62 KB of the shortest ones take 1.8 MB.
const MaxHeaderLines = 128

// A header counts the lines of a request's header as they are read. When the
// request is there it is too late: until its last line comes, a header holds its
// memory.
//
// What the server has read in advance, at most one buffer of 4 KiB, is not counted
// for the request that it belongs to.
type header struct {
	within bool // what is read belongs to a header
	begun  bool // something was read
	filled bool // the line that is read has something in it
	lines  int
}

func (h *header) begin() { *h = header{within: true} }
func (h *header) end()   { h.within = false }

// read looks at what was read, and reports whether the header is within its bound.
func (h *header) read(p []byte) bool {
	for h.within && len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		line := p
		if i >= 0 {
			line = p[:i]
		}
		h.filled = h.filled || len(line) > 1 || len(line) == 1 && line[0] != '\r'
		if i < 0 {
			return true
		}
		p = p[i+1:]
		switch {
		case h.filled:
			h.lines++
		case h.lines > 0: // an empty line before a request is not the end of one
			h.end()
		}
		h.filled = false
		if h.lines > MaxHeaderLines+1 { // the first is the request line
			return false
		}
	}
	return true
}

// Read reads from the connection. A header with too many lines, or one that there
// is no memory for, is answered here, and ends the connection.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 || !c.header.within {
		return n, err
	}
	if !c.header.begun {
		c.header.begun = true
		c.enterHeader()
	}
	answer := tooManyLines
	if c.header.read(p[:n]) {
		if c.meter.Read(p[:n]) {
			return n, err
		}
		c.meter.Hold.Budget().Refuse()
		answer = noMemory
	}
	linger(c.Conn, answer)
	return 0, io.EOF // to which the server answers nothing
}

// enterHeader notes that a connection which was idle has begun to send a request,
// so that it is not closed with the request on its way.
func (c *Conn) enterHeader() {
	c.l.mu.Lock()
	if c.place == idle {
		c.l.moveLocked(c, fresh)
	}
	c.l.mu.Unlock()
}
