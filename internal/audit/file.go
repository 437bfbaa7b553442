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
// may write one chain, as when a gateway is started beside one that drains: each has
// the lock for one write, and goes on behind what the others have written.
type file struct {
	// Set once.
	path      string // "" is standard output
	log       *zap.Logger
	hashChain *chain     // nil: records are not chained
	chainLock *chainLock // of a chain; nil: it has no other writer
	isStdout  bool       // standard output: not ours to close

	// Owned by the outlet's run.
	file         *os.File
	isRegular    bool   // it can be synced, and rotated
	needsSync    bool   // written since the last sync
	reopenFailed bool   // it was said that a new file cannot be opened
	lockFailed   bool   // the lock could not be had; it was said
	partialBytes int    // bytes of the next record that the file has already
	size         int64  // of a chained file, behind what we wrote last
	chained      []byte // records with their links
	firstRecord  []byte // the first record of a chained file, until it is in there
	afterFirst   chain  // the chain behind that record
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

// openChainLock is for a path that leads, or will lead, to a regular file.
func (s *file) openChainLock() {
	if info, err := os.Stat(s.path); err == nil && !info.Mode().IsRegular() {
		return
	}
	var err error
	if s.chainLock, err = openChainLock(s.path); err != nil {
		s.log.Warn("the chain has no lock: no other gateway may write this audit log", zap.String("file", s.path), zap.Error(err))
	}
}

// open opens what is at the path now. When it cannot be used, s stays as it is.
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

// openPath opens the path, for reading too if it is a regular file; one that may only
// be written has readers who must cope with an unfinished line, and no chain.
// O_NONBLOCK keeps a FIFO without a reader from holding us up, and lets write have a
// deadline.
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

// continueFile ends the line that a killed process left unfinished, and goes on with
// the chain of the file, or begins one.
func (s *file) continueFile(f *os.File, info os.FileInfo) error {
	tail := make([]byte, min(info.Size(), 4*maxRecordBytes)) // holds a whole record for sure
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
		// Written with the next record: a full disk must not keep us in the old
		// file, whose blocks are free when it is closed.
		s.firstRecord, s.afterFirst = s.hashChain.firstRecord()
	}
	return nil
}

// terminateLine ends the line at the end of a file, if it is not, and says by how many bytes.
func terminateLine(f *os.File, tail []byte) (int64, error) {
	if len(tail) == 0 || tail[len(tail)-1] == '\n' {
		return 0, nil
	}
	n, err := f.Write([]byte{'\n'})
	return int64(n), err
}

// acquireChain makes a chained file ours for one write, with all in it that others have
// written. One that was moved away is left, before anybody goes on in the new one
// from a record that is not the old one's last.
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

// relockTimeout is how long the lock is waited for when it could not be had before.
const relockTimeout = 100 * time.Millisecond

// acquireLock waits for the lock; a process that has stopped with it keeps nobody from
// writing, and then the chain may show it.
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
		s.log.Warn("another process keeps the audit log locked, and it is written without the lock", zap.String("lock", chainLockPath(s.path)))
	}
	s.lockFailed = !acquired
}

// releaseLock tells the others how far the chain has got, and lets them write.
func (s *file) releaseLock() {
	if s.chainLock == nil || s.lockFailed {
		return
	}
	if s.file != nil && s.isRegular && s.firstRecord == nil {
		if info, err := s.file.Stat(); err == nil && info.Size() == s.size {
			_ = s.chainLock.writePosition(chainPosition{fileIDOf(info), s.size, *s.hashChain}) // else they do not follow us, and a Verifier finds it
		}
	}
	s.chainLock.release()
}

// readPosition is how far all writers of the chain have got; the zero value where nobody says.
func (s *file) readPosition() chainPosition {
	if s.chainLock == nil || s.lockFailed {
		return chainPosition{}
	}
	return s.chainLock.readPosition()
}

// catchUp goes on behind the records that others have written since we last wrote.
// What somebody else has done to the file is left to be found by a Verifier.
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

// rewindChain leaves in the chain only the records that are in the file, and gives
// their length without links.
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

// writeLines writes the lines, going on where the first of them was torn, and gives
// the length of those that are whole in the file. It has a deadline where the
// file can have one: a FIFO, whose reader may have stopped. A regular file
// answers or fails by itself.
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

// lengthOfLines is the length of the first n lines.
func lengthOfLines(lines []byte, n int) int {
	length := 0
	for ; n > 0; n-- {
		length += bytes.IndexByte(lines[length:], '\n') + 1
	}
	return length
}

// maintain goes on in a new file when the path leads to another, and makes what was
// written durable.
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

// reopen goes on in what is at the path now, if it can be opened.
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
	_ = old.Sync() // of a FIFO it fails
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

// wasMoved says whether the path no longer leads to this file. A FIFO that is gone
// may come back: only its maker can make another.
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
