package budget

import "net/http"

// What things take besides the bytes that were sent, measured with Go's server and its
// maps on a 64-bit machine. TestCosts holds them against the heap.
const (
	// Conn is what a connection takes: its goroutine with the stack, and its buffers.
	// Request is what a request takes that is answered: the server's own objects, and the
	// stack that has grown for the handler.
	Conn    = 16 << 10
	Request = 6 << 10

	// Job is what a job takes besides header and body.
	Job = 3 << 10

	perName  = 96 // the entry in a map, which may be half empty
	perValue = 16 // a string; where it was read there is some waste
	waste    = 8
	perMap   = 512
)

// Header returns about how many bytes a request's header takes, as the server has read
// it.
func Header(r *http.Request) int64 {
	n := perMap + len(r.RequestURI)*2 + len(r.Host)
	for name, values := range r.Header {
		n += perName + len(name)
		for _, v := range values {
			n += perValue + waste + len(v)
		}
	}
	return int64(n)
}

// Copy returns about how many bytes a copy of the header takes, which has its strings in
// common with the original.
func Copy(h http.Header) int64 {
	n := perMap
	for _, values := range h {
		n += perName + perValue*len(values)
	}
	return int64(n)
}
