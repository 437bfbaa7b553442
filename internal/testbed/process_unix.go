//go:build unix && !linux

package testbed

import (
	"os/exec"
	"syscall"
)

// setProcessGroup gives a command its own process group, so that its children can be
// killed with it.
func setProcessGroup(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}
