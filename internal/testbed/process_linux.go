package testbed

import (
	"os/exec"
	"syscall"
)

// setProcessGroup puts a command into a group of its own, so that all its children can
// be ended with it, and ends it when the test's process is killed.
func setProcessGroup(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGTERM
}
