package budget

import "bytes"

// A Meter counts the header of a request while it is being read: when the server has a
// request it is too late, and until its last line comes a header holds its memory. It is
// used by the goroutine that reads from the connection. A header of ordinary size is in
// what a connection takes anyway, and costs a look at its bytes.
type Meter struct {
	Hold   Hold
	within bool // what is read belongs to a header
	bytes  int64
	lines  int64
	paid   int64
}

// What is free of the bytes and lines of a header.
const (
	freeBytes = 4 << 10
	freeLines = 32
)

// Begin tells that the next bytes belong to the header of a request.
func (m *Meter) Begin() { m.within, m.bytes, m.lines, m.paid = true, 0, 0, 0 }

// End tells that the request is there. Whoever has it counts it.
func (m *Meter) End() {
	m.within = false
	m.Hold.Release(m.paid)
	m.paid = 0
}

// Read counts what was read, and reports whether there is memory for it.
func (m *Meter) Read(p []byte) bool {
	if !m.within {
		return true
	}
	m.bytes += int64(len(p))
	m.lines += int64(bytes.Count(p, []byte{'\n'}))
	if m.bytes <= freeBytes && m.lines <= freeLines {
		return true
	}
	more := m.bytes + m.lines*(perName+perValue+waste) - m.paid
	if !m.Hold.reserve(more, m.paid+more > small) {
		return false
	}
	m.paid += more
	return true
}
