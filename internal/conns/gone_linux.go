package conns

import (
	"encoding/binary"
	"net"
	"syscall"
)

// The states of a connection that matter here, of those in Linux's tcp_states.h.
const (
	tcpClose     = 7
	tcpCloseWait = 8
)

// tcpNotSentLowat bounds what a connection holds that the other end has no room
// for. Package syscall does not name it.
const tcpNotSentLowat = 0x19

// notSent is that bound in bytes.
const notSent = 128 << 10

// ask asks the system for the state of a connection. It is the first byte of the
// tcp_info, of which as many bytes are given as there is room for.
func ask(c net.Conn) peer {
	socket, ok := c.(*net.TCPConn)
	if !ok {
		return present
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return gone
	}
	var info [4]byte
	var failed error
	err = raw.Control(func(fd uintptr) {
		var v int
		v, failed = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_INFO)
		binary.NativeEndian.PutUint32(info[:], uint32(v))
	})
	switch {
	case err != nil:
		return gone // closed here
	case failed != nil:
		return present
	case info[0] != tcpClose && info[0] != tcpCloseWait:
		return present
	}
	if multipath, err := socket.MultipathTCP(); multipath || err != nil {
		return present // the state is that of one path
	}
	if info[0] == tcpCloseWait {
		return ended
	}
	return gone
}

// unbuffered lets a connection take no more in advance than a little. By itself the
// system takes up to 4 MiB for each: memory that a slow reader holds, and from here
// it looks as if the client had taken it. A listener that has the option passes it
// on only to some: not where it listens for Multipath TCP too, as Go's do.
func unbuffered(c net.Conn) {
	socket, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		// Without it the server works, and is only less strict.
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowat, notSent)
	})
}
