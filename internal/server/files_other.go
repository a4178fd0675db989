//go:build !unix

package server

// openFiles returns the limit of open files.
func openFiles() int { return maxFiles }
