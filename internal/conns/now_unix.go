//go:build unix

package conns

import (
	"net"
	"syscall"
)

// writeNow writes all of text without waiting, and reports whether it could. A
// deadline is no way to do that: one in the past writes nothing.
func writeNow(c net.Conn, text string) bool {
	raw, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	conn, err := raw.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	err = conn.Write(func(fd uintptr) bool {
		n, _ = syscall.Write(int(fd), []byte(text))
		return true
	})
	return err == nil && n == len(text)
}
