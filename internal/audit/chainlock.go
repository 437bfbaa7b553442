package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// chainLock is what the processes that write one chain share: a lock, and where the chain
// has got to. It is a file beside the log that only their user may open: whoever may
// read the log could keep a lock on it, and whoever may write it could add a record
// that follows from the last one.
type chainLock struct{ file *os.File }

// chainLockPath is where the guard of a log is: not among what audit.log* names.
func chainLockPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
}

// chainPosition is how far the writers of a chain have got.
type chainPosition struct {
	file  fileID
	size  int64 // of the file, behind the last record
	chain chain
}

// fileID tells one file from all others, as long as it is there.
type fileID struct{ dev, ino uint64 }

// maxLockFileBytes is more than a guard holds.
const maxLockFileBytes = 256

// readPosition gives what store has kept; the zero value where there is nothing.
func (g *chainLock) readPosition() (p chainPosition) {
	var b [maxLockFileBytes]byte
	n, _ := g.file.ReadAt(b[:], 0) // io.EOF
	var hash []byte
	text := bytes.TrimRight(b[:n], " \n")
	if _, err := fmt.Sscanf(string(text), "1 %d %d %d %d %x", &p.file.dev, &p.file.ino, &p.size, &p.chain.seq, &hash); err != nil ||
		copy(p.chain.hash[:], hash) != len(p.chain.hash) {
		return chainPosition{}
	}
	return p
}

// writePosition keeps r for the others. Without it they keep to what they know.
func (g *chainLock) writePosition(p chainPosition) error {
	text := fmt.Appendf(nil, "1 %d %d %d %d %s", p.file.dev, p.file.ino, p.size, p.chain.seq, hex.EncodeToString(p.chain.hash[:]))
	_, err := g.file.WriteAt(append(text, bytes.Repeat([]byte{' '}, maxLockFileBytes-len(text))...), 0)
	return err
}
