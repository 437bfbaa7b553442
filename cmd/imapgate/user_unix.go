//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// becomeUser gives this process the rights of a user, and takes its own away for good.
// "" changes nothing.
func becomeUser(name string) error {
	if name == "" {
		return nil
	}
	u, err := osuser.Lookup(name)
	if err != nil {
		return fmt.Errorf("--user: %w", err)
	}
	groups, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("--user %s: %w", name, err)
	}
	uid, wrong := strconv.Atoi(u.Uid)
	gid, err := strconv.Atoi(u.Gid)
	ids := make([]int, len(groups))
	for i, group := range groups {
		var bad error
		ids[i], bad = strconv.Atoi(group)
		err = errors.Join(err, bad)
	}
	if err := errors.Join(wrong, err); err != nil {
		return fmt.Errorf("--user %s: %w", name, err)
	}
	if uid == os.Geteuid() {
		return nil
	}
	for _, become := range []func() error{
		func() error { return syscall.Setgroups(ids) }, func() error { return syscall.Setgid(gid) }, func() error { return syscall.Setuid(uid) },
	} {
		if err := become(); err != nil {
			return fmt.Errorf("--user %s: only root can check as another user: %w", name, err)
		}
	}
	return nil
}

// unitFolders are where systemd finds units; the first wins.
var unitFolders = []string{"etc", "run", "usr/local/lib", "usr/lib", "lib"}

// doubtUser says that root checks what another user has to read.
func doubtUser(root string) []finding {
	if os.Geteuid() != 0 {
		return nil
	}
	unit, user := unitUser(root)
	if user == "" || user == "root" || user == "0" {
		return nil
	}
	return []finding{{File: unit, Text: fmt.Sprintf("the service runs as %[1]s, and this was checked as root, who may read everything: imapgate check --user %[1]s", user)}}
}

// unitUser is the user of the service that is installed, and the file that says so.
func unitUser(root string) (unit, user string) {
	for _, folder := range unitFolders {
		path := filepath.Join(root, folder, "systemd/system/imapgate.service")
		if name := userIn(path); name != "" {
			unit, user = path, name
			break
		}
	}
	for _, folder := range slices.Backward(unitFolders) {
		dropins, _ := filepath.Glob(filepath.Join(root, folder, "systemd/system/imapgate.service.d/*.conf")) // the pattern is good
		for _, path := range dropins {
			if name := userIn(path); name != "" {
				unit, user = path, name
			}
		}
	}
	return unit, user
}

// userIn is the last User= of a unit's file, or "".
func userIn(path string) (user string) {
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
