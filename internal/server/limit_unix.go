//go:build unix

package server

import "syscall"

// maxConns returns the greatest number of connections that the limit of open
// files allows, and how many to hold open by default.
func maxConns() (most, byDefault int) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return connsFor(1024)
	}
	return connsFor(uint64(files.Cur))
}
