package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// guard is what the processes that write one chain share: a lock, and where the chain
// has got to. It is a file beside the log that only their user may open: whoever may
// read the log could keep a lock on it, and whoever may write it could add a record
// that follows from the last one.
type guard struct{ f *os.File }

// guardPath is where the guard of a log is: not among what audit.log* names.
func guardPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
}

// reached is how far the writers of a chain have got.
type reached struct {
	file  fileID
	size  int64 // of the file, behind the last record
	chain chain
}

// fileID tells one file from all others, as long as it is there.
type fileID struct{ dev, ino uint64 }

// maxGuard is more than a guard holds.
const maxGuard = 256

// load gives what store has kept; the zero value where there is nothing.
func (g *guard) load() (r reached) {
	var b [maxGuard]byte
	n, _ := g.f.ReadAt(b[:], 0) // io.EOF
	var hash []byte
	text := bytes.TrimRight(b[:n], " \n")
	if _, err := fmt.Sscanf(string(text), "1 %d %d %d %d %x", &r.file.dev, &r.file.ino, &r.size, &r.chain.seq, &hash); err != nil ||
		copy(r.chain.hash[:], hash) != len(r.chain.hash) {
		return reached{}
	}
	return r
}

// store keeps r for the others. Without it they keep to what they know.
func (g *guard) store(r reached) error {
	text := fmt.Appendf(nil, "1 %d %d %d %d %s", r.file.dev, r.file.ino, r.size, r.chain.seq, hex.EncodeToString(r.chain.hash[:]))
	_, err := g.f.WriteAt(append(text, bytes.Repeat([]byte{' '}, maxGuard-len(text))...), 0)
	return err
}
