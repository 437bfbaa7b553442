package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

const socketMode = 0o660

// socket is the Unix socket for operators.
type socket struct {
	*net.UnixListener
	path string
	file os.FileInfo // of path, to remove only the file of this process
}

// listenSocket listens on a Unix socket. It replaces the file of an earlier process, also of
// one that still drains: the latest process is the one to talk to.
func listenSocket(path string, log *zap.Logger) (*socket, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s exists and is not a socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		log.Warn("another gateway was reachable at this socket, and is no longer", zap.String("socket", path))
	}
	// Under another name first: it must have its mode before anyone can connect, and a client
	// must always find one of the two sockets.
	temporary := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), os.Getpid()))
	_ = os.Remove(temporary) // left by a process with the same id
	config := net.ListenConfig{Control: denyAll}
	l, err := config.Listen(context.Background(), "unix", temporary)
	if err != nil {
		return nil, err
	}
	s := &socket{UnixListener: l.(*net.UnixListener), path: path}
	s.SetUnlinkOnClose(false)
	err = errors.Join(os.Chmod(temporary, socketMode), os.Rename(temporary, path))
	if err == nil {
		s.file, err = os.Lstat(path)
	}
	if err != nil {
		_ = s.UnixListener.Close()
		_ = os.Remove(temporary)
		return nil, err
	}
	return s, nil
}

// Close closes the socket, and removes its file unless another process has replaced it.
func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path)
	}
	return s.UnixListener.Close()
}
