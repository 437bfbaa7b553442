package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// file is a sink: a file, a FIFO, a device, or standard output. Several processes
// may write one chain, as when a gateway starts while an old one drains. Each holds
// the lock for one write, and continues after the records of the others.
type file struct {
	// Set once.
	path      string // "" for standard output
	log       *zap.Logger
	hashChain *chain     // nil: records are not chained
	chainLock *chainLock // nil: no other process writes the chain
	isStdout  bool       // standard output, which close leaves open

	// Owned by the sink writer's run.
	file         *os.File
	isRegular    bool   // can be synced and rotated
	needsSync    bool   // written since the last sync
	reopenFailed bool   // the failure to open a new file has been logged
	lockFailed   bool   // the failure to acquire the lock has been logged
	partialBytes int    // bytes of the next record that are already in the file
	size         int64  // of a chained file, after our last write
	chained      []byte // records with their numbers and hashes
	firstRecord  []byte // the first record of a chained file, until it is written
	afterFirst   chain  // the chain after that record
}

func newStdout() *file { return &file{file: os.Stdout, isStdout: true} }

// openFile opens path for appending.
func openFile(path string, useChain bool, log *zap.Logger) (*file, error) {
	s := &file{path: path, log: log}
	if useChain {
		s.hashChain = &chain{}
		s.openChainLock()
	}
	s.acquireLock()
	defer s.releaseLock()
	if err := s.open(); err != nil {
		s.closeChainLock()
		return nil, err
	}
	return s, nil
}

// openChainLock opens the lock if the path is, or will be, a regular file.
func (s *file) openChainLock() {
	if info, err := os.Stat(s.path); err == nil && !info.Mode().IsRegular() {
		return
	}
	var err error
	if s.chainLock, err = openChainLock(s.path); err != nil {
		s.log.Warn("the chain has no lock: only one gateway may write this audit log", zap.String("file", s.path), zap.Error(err))
	}
}

// open opens the path. After an error s is unchanged.
func (s *file) open() error {
	f, readable, err := s.openPath()
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && readable {
		err = s.continueFile(f, info)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	s.file, s.isRegular, s.needsSync, s.partialBytes = f, info.Mode().IsRegular(), false, 0
	return nil
}

// openPath opens the path; for reading too if it is a regular file. A file without
// read permission gets no repair of an unfinished line, and no chain. O_NONBLOCK
// keeps a FIFO without a reader from blocking, and allows a write deadline.
func (s *file) openPath() (f *os.File, readable bool, err error) {
	const flags = os.O_APPEND | os.O_CREATE | syscall.O_NONBLOCK
	if info, err := os.Stat(s.path); err != nil || info.Mode().IsRegular() {
		f, err := os.OpenFile(s.path, os.O_RDWR|flags, 0o600)
		if err == nil || s.hashChain != nil || !errors.Is(err, fs.ErrPermission) {
			return f, true, err
		}
	}
	f, err = os.OpenFile(s.path, os.O_WRONLY|flags, 0o600)
	return f, false, err
}

// continueFile ends a line that a killed process left unfinished, and continues the
// file's chain or begins one.
func (s *file) continueFile(f *os.File, info os.FileInfo) error {
	tail := make([]byte, min(info.Size(), 4*maxRecordBytes)) // holds at least one complete record
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return err
	}
	added, err := terminateLine(f, tail)
	if err != nil {
		return fmt.Errorf("end the unfinished line in %s: %w", s.path, err)
	}
	s.size = info.Size() + added
	s.firstRecord = nil
	position := s.readPosition()
	switch {
	case s.hashChain == nil:
	case position.file == fileIDOf(info) && position.size == info.Size():
		*s.hashChain = position.chain
	case !s.hashChain.restoreFrom(tail):
		if position.chain.seq > s.hashChain.seq {
			*s.hashChain = position.chain
		}
		// It is written with the next record. A full disk must not keep the old file in use:
		// its blocks are freed when it is closed.
		s.firstRecord, s.afterFirst = s.hashChain.firstRecord()
	}
	return nil
}

// terminateLine ends the last line of a file if necessary, and returns the number of
// bytes added.
func terminateLine(f *os.File, tail []byte) (int64, error) {
	if len(tail) == 0 || tail[len(tail)-1] == '\n' {
		return 0, nil
	}
	n, err := f.Write([]byte{'\n'})
	return int64(n), err
}

// acquireChain locks a chained file for one write and catches up with the records of
// others. It leaves a file that was moved away under the lock, so that no writer
// continues in the new file from a record that is not the old file's last.
func (s *file) acquireChain() error {
	s.acquireLock()
	if err := s.catchUp(); err != nil {
		s.releaseLock()
		return err
	}
	if s.wasMoved() {
		s.reopen()
	}
	return nil
}

// relockTimeout bounds the wait for the lock after a failure to acquire it.
const relockTimeout = 100 * time.Millisecond

// acquireLock waits for the lock. If a stopped process holds it, the file is written
// without the lock, and verification may then find a broken chain.
func (s *file) acquireLock() {
	if s.chainLock == nil {
		return
	}
	timeout := sinkTimeout
	if s.lockFailed {
		timeout = relockTimeout
	}
	acquired := s.chainLock.acquire(timeout)
	if !acquired && !s.lockFailed {
		s.log.Warn("another process holds the lock of the audit log; writing without it", zap.String("lock", chainLockPath(s.path)))
	}
	s.lockFailed = !acquired
}

// releaseLock stores the chain's position for the other writers and unlocks the
// file.
func (s *file) releaseLock() {
	if s.chainLock == nil || s.lockFailed {
		return
	}
	if s.file != nil && s.isRegular && s.firstRecord == nil {
		if info, err := s.file.Stat(); err == nil && info.Size() == s.size {
			_ = s.chainLock.writePosition(chainPosition{fileIDOf(info), s.size, *s.hashChain}) // on error they do not continue after us, and a Verifier finds it
		}
	}
	s.chainLock.release()
}

// readPosition returns the position that all writers of the chain have reached; zero
// if unknown.
func (s *file) readPosition() chainPosition {
	if s.chainLock == nil || s.lockFailed {
		return chainPosition{}
	}
	return s.chainLock.readPosition()
}

// catchUp continues after the records that other processes have written since our
// last write. Other changes of the file are left for a Verifier to find.
func (s *file) catchUp() error {
	info, err := s.file.Stat()
	if err != nil || info.Size() == s.size {
		return err
	}
	s.partialBytes = 0
	if position := s.readPosition(); position.chain.seq > s.hashChain.seq {
		*s.hashChain, s.firstRecord = position.chain, nil
	}
	var last [1]byte
	if _, err := s.file.ReadAt(last[:], info.Size()-1); err != nil && info.Size() > 0 {
		return err
	}
	added, err := terminateLine(s.file, last[:min(info.Size(), 1)])
	s.size = info.Size() + added
	return err
}

func (s *file) write(lines []byte) (int, error) {
	if s.hashChain == nil || !s.isRegular {
		return s.writeLines(lines)
	}
	if err := s.acquireChain(); err != nil {
		return 0, err
	}
	defer s.releaseLock()
	before := *s.hashChain
	s.chained = append(s.chained[:0], s.firstRecord...)
	if s.firstRecord != nil {
		*s.hashChain = s.afterFirst
	}
	s.chained = s.hashChain.appendRecords(s.chained, lines)
	n, err := s.writeLines(s.chained)
	records := bytes.Count(s.chained[:n], []byte{'\n'})
	complete := n == len(s.chained)
	if cap(s.chained) > maxKeptBuffer {
		s.chained = nil
	}
	if complete {
		s.firstRecord = nil
		return len(lines), err
	}
	*s.hashChain = before
	return s.rewindChain(lines, records), err
}

// rewindChain sets the chain to the records that are in the file, and returns the
// length of their lines without numbers and hashes.
func (s *file) rewindChain(lines []byte, records int) int {
	if s.firstRecord != nil && records > 0 {
		*s.hashChain = s.afterFirst
		s.firstRecord = nil
		records--
	}
	n := lengthOfLines(lines, records)
	s.hashChain.appendRecords(nil, lines[:n])
	return n
}

// writeLines writes the lines, continuing after the bytes of the first that the file
// already has. It returns the length of the lines that are complete in the file. It
// has a deadline if the file supports one: the reader of a FIFO may have stopped. A
// write to a regular file returns without a deadline.
func (s *file) writeLines(lines []byte) (int, error) {
	_ = s.file.SetWriteDeadline(time.Now().Add(sinkTimeout))
	n, err := s.file.Write(lines[s.partialBytes:])
	s.needsSync = s.needsSync || n > 0
	s.size += int64(n)
	n += s.partialBytes
	complete := bytes.LastIndexByte(lines[:n], '\n') + 1
	s.partialBytes = n - complete
	return complete, err
}

// lengthOfLines returns the length of the first n lines.
func lengthOfLines(lines []byte, n int) int {
	length := 0
	for ; n > 0; n-- {
		length += bytes.IndexByte(lines[length:], '\n') + 1
	}
	return length
}

// maintain syncs the file, and opens a new one if the path no longer leads to this
// one.
func (s *file) maintain() error {
	if err := s.sync(); err != nil {
		return err
	}
	switch {
	case !s.wasMoved():
	case s.hashChain != nil && s.isRegular:
		if err := s.acquireChain(); err != nil {
			return err
		}
		s.releaseLock()
	default:
		s.reopen()
	}
	return nil
}

// reopen switches to the file that is at the path now, if it can be opened.
func (s *file) reopen() {
	old := s.file
	if err := s.open(); err != nil {
		if !s.reopenFailed {
			s.log.Error("audit log was moved away and the new file cannot be opened; the old one stays in use", zap.Error(err))
		}
		s.reopenFailed = true
		return
	}
	s.reopenFailed = false
	_ = old.Sync() // fails for a FIFO
	_ = old.Close()
}

func (s *file) sync() error {
	if !s.isRegular || !s.needsSync {
		return nil
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.needsSync = false
	return nil
}

// wasMoved reports whether the path no longer leads to this file. A missing FIFO
// does not count: the gateway must not put a regular file in its place.
func (s *file) wasMoved() bool {
	if s.isStdout {
		return false
	}
	atPath, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.isRegular
	}
	if err != nil {
		return false
	}
	current, err := s.file.Stat()
	return err == nil && !os.SameFile(current, atPath)
}

func (s *file) close() error {
	if s.isStdout {
		return nil
	}
	s.closeChainLock()
	return s.file.Close()
}

func (s *file) closeChainLock() {
	if s.chainLock != nil {
		_ = s.chainLock.file.Close()
	}
}
