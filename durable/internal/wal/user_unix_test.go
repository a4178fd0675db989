//go:build unix

package wal

import (
	"os"
	"syscall"
	"testing"
)

// unprivileged returns what makes a process of one whom the modes of files bind.
func unprivileged(*testing.T) *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
