//go:build unix && !linux

package testbed

import "syscall"

// ownGroup puts a process into a group of its own, so that all its children can
// be ended with it.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
