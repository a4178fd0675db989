//go:build unix

package server

import "syscall"

// openFiles returns the limit of open files. Go has raised it to what the system
// allows at most.
func openFiles() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 1024
	}
	return int(min(uint64(files.Cur), maxFiles))
}
