package testbed

import (
	"os/exec"
	"syscall"
)

// setProcessGroup gives a command its own process group, so that its children can be
// killed with it. The kernel ends the command when the test's process is killed.
func setProcessGroup(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGTERM
}
