//go:build unix && !linux

package testbed

import (
	"os/exec"
	"syscall"
)

// setProcessGroup puts a command into a group of its own, so that all its children can
// be ended with it.
func setProcessGroup(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}
