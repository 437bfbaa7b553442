package testbed

import "syscall"

// ownGroup puts a process into a group of its own, so that all its children can
// be ended with it, and ends it when the test's process is killed.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
