//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/signal"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"imapgate/internal/config"
)

// dropToUser switches this process permanently to the rights of a user. "" changes
// nothing.
func dropToUser(name string) error {
	if name == "" {
		return nil
	}
	u, err := osuser.Lookup(name)
	if err != nil {
		return fmt.Errorf("--user: %s", strings.TrimPrefix(err.Error(), "user: "))
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("--user %s: %w", name, err)
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, err := strconv.Atoi(u.Gid)
	ids := make([]int, len(groups))
	for i, group := range groups {
		var gidErr error
		ids[i], gidErr = strconv.Atoi(group)
		err = errors.Join(err, gidErr)
	}
	if err := errors.Join(uidErr, err); err != nil {
		return fmt.Errorf("--user %s: %w", name, err)
	}
	if uid == os.Geteuid() {
		return nil
	}
	for _, setIDs := range []func() error{
		func() error { return syscall.Setgroups(ids) }, func() error { return syscall.Setgid(gid) }, func() error { return syscall.Setuid(uid) },
	} {
		if err := setIDs(); err != nil {
			return fmt.Errorf("--user %s: only root can check as another user: %w", name, err)
		}
	}
	return nil
}

// unitDirs are the directories of systemd units, by precedence.
var unitDirs = []string{"etc", "run", "usr/local/lib", "usr/lib", "lib"}

// warnUserMismatch warns if root checks files that the service reads as another
// user.
func warnUserMismatch(root string) []problem {
	if os.Geteuid() != 0 {
		return nil
	}
	unit, user := findUnitUser(root)
	if user == "" || user == "root" || user == "0" {
		return nil
	}
	return []problem{{unit, config.Problem{Text: fmt.Sprintf("the service runs as %[1]s, but this was checked as root, which can read everything; run: imapgate check --user %[1]s", user)}}}
}

// findUnitUser returns the user of the installed service, and the file that names
// it.
func findUnitUser(root string) (unit, user string) {
	for _, folder := range unitDirs {
		path := filepath.Join(root, folder, "systemd/system/imapgate.service")
		if name := parseUnitUser(path); name != "" {
			unit, user = path, name
			break
		}
	}
	for _, folder := range slices.Backward(unitDirs) {
		dropins, _ := filepath.Glob(filepath.Join(root, folder, "systemd/system/imapgate.service.d/*.conf")) // the pattern is valid
		for _, path := range dropins {
			if name := parseUnitUser(path); name != "" {
				unit, user = path, name
			}
		}
	}
	return unit, user
}

// parseUnitUser returns the last User= of a unit file, or "".
func parseUnitUser(path string) (user string) {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "User="); ok {
			user = strings.TrimSpace(name)
		}
	}
	return user
}

// allowBackground lets a process that reads its terminal run in the background: the
// read then returns an error instead of stopping the process.
func allowBackground() { signal.Ignore(syscall.SIGTTIN) }

// keepOwner gives a new file the owner of the one that it replaces, if there is one.
func keepOwner(f *os.File, replaced string) error {
	info, err := os.Stat(replaced)
	if err != nil {
		return nil // nothing is replaced
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == os.Geteuid() && int(stat.Gid) == os.Getegid() {
		return nil
	}
	return f.Chown(int(stat.Uid), int(stat.Gid))
}
