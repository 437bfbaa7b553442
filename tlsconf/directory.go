package tlsconf

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// maxEntries bounds the files and subdirectories of a directory.
const maxEntries = 4_096

// directory is a directory of certificates and keys with its subdirectories, such as certbot's
// live/. A key belongs to every certificate with its public key, in any of the files.
type directory struct {
	// Set once.
	path string

	// Owned by the Server, under its mu.
	canBeEmpty     bool       // the server has configured certificates
	pairs          []*keyPair // last good versions, in the order in which they are served
	lastErr        error      // error of the last reload
	warnings       []error    // problems that do not affect what is served
	loggedWarnings []error    // warnings already logged
	entries        []string   // files and subdirectories found, sorted
}

// reload reads the directory again. It reports whether pairs changed. Its error names every
// problem; a pair with a broken file stays as it was.
func (d *directory) reload(now time.Time) (changed bool, err error) {
	defer func() { d.lastErr = err }()
	entries, err := listPEM(d.path)
	if err != nil {
		return false, err
	}
	d.entries = entries
	s := scanFiles(entries)
	s.previous = d.pairs
	next := s.mergeKeyPairs(d.pairs, s.matchKeys())
	d.warnings = s.warnings
	sortKeyPairs(next, now)
	if len(next) == 0 && !d.canBeEmpty && len(d.pairs) > 0 {
		return false, errors.Join(append(s.problems, &FileError{d.path, errors.New("no certificate with its key is left")})...)
	}
	if !slices.EqualFunc(d.pairs, next, func(a, b *keyPair) bool { return a.checksum == b.checksum && a.files == b.files }) {
		d.pairs, changed = next, true
	}
	return changed, errors.Join(s.problems...)
}

// sortKeyPairs puts pairs in the order in which they are served: valid ones first, then by file
// name. Pairs that share a name follow the first of them, the newest first, so that a renewal
// changes no default but its own.
func sortKeyPairs(pairs []*keyPair, now time.Time) {
	compareValidity := func(a, b *keyPair) int { // valid before invalid
		if a.isValid(now) == b.isValid(now) {
			return 0
		}
		if a.isValid(now) {
			return -1
		}
		return 1
	}
	slices.SortFunc(pairs, func(a, b *keyPair) int {
		return cmp.Or(compareValidity(a, b), strings.Compare(a.files.Cert, b.files.Cert),
			strings.Compare(string(a.checksum[:]), string(b.checksum[:])))
	})
	parent := make([]int, len(pairs)) // a tree for all that share names; its root is the first of them
	root := func(i int) int {
		for parent[i] != i {
			i = parent[i]
		}
		return i
	}
	lastWithName, group := make(map[string]int), make(map[*keyPair]int)
	for i, p := range pairs {
		parent[i] = i
		for _, name := range certificateNames(p.cert) {
			if j, ok := lastWithName[name]; ok {
				a, b := root(i), root(j)
				parent[max(a, b)] = min(a, b)
			}
			lastWithName[name] = i
		}
	}
	for i, p := range pairs {
		group[p] = root(i)
	}
	slices.SortStableFunc(pairs, func(a, b *keyPair) int {
		return cmp.Or(compareValidity(a, b), cmp.Compare(group[a], group[b]),
			b.cert.Leaf.NotBefore.Compare(a.cert.Leaf.NotBefore))
	})
}

// logWarnings logs the new warnings.
func (d *directory) logWarnings(log *zap.Logger) {
	isLogged := func(err error) bool {
		return slices.ContainsFunc(d.loggedWarnings, func(old error) bool { return old.Error() == err.Error() })
	}
	for _, err := range d.warnings {
		if !isLogged(err) {
			log.Warn("a key should not be among the certificates", zap.Error(err))
		}
	}
	d.loggedWarnings = d.warnings
}

// listPEM lists the PEM files of a directory, its subdirectories, and the PEM files in them. It
// skips names that begin with a dot: Kubernetes keeps its versions there.
func listPEM(path string) (entries []string, err error) {
	top, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range top {
		name := filepath.Join(path, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if info, err := os.Stat(name); err != nil || !info.IsDir() {
			if isPEM(name) {
				entries = append(entries, name) // also a broken link, so that it is reported
			}
			continue
		}
		entries = append(entries, name)
		sub, _ := os.ReadDir(name) // scanFiles reports the error
		for _, e := range sub {
			if file := filepath.Join(name, e.Name()); isPEM(file) && !e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
				entries = append(entries, file)
			}
		}
		if len(entries) > maxEntries {
			return nil, fmt.Errorf("%s holds more than %d files", path, maxEntries)
		}
	}
	slices.Sort(entries)
	return entries, nil
}

// isPEM reports whether a file's name suggests certificates or keys.
func isPEM(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".pem", ".crt", ".cer", ".key":
		return true
	}
	return false
}

// mergeKeyPairs returns the pairs to serve next: the new ones, and the old ones that have a
// broken file or whose successors are worse.
func (s *pemScan) mergeKeyPairs(old, found []*keyPair) (next []*keyPair) {
	next = found
	byLeaf, byFile := make(map[string]int), make(map[string]int)
	for i, n := range next {
		byLeaf[n.leafDER()] = i
	}
	oldLeaves := make(map[string]bool)
	for _, p := range old {
		oldLeaves[p.leafDER()] = true
	}
	for i, n := range next {
		if !oldLeaves[n.leafDER()] { // a leaf that was served already replaces no other
			byFile[n.files.Cert], byFile[n.files.Key] = i, i
		}
	}
	for _, p := range old {
		if i, ok := byLeaf[p.leafDER()]; ok {
			// The new file has only the leaf while the chain is being written.
			if len(next[i].cert.Certificate) < len(p.cert.Certificate) && s.hasProblem(p) {
				next[i] = p
			}
			continue
		}
		i, ok := byFile[p.files.Cert]
		if !ok {
			i, ok = byFile[p.files.Key]
		}
		switch {
		case !ok && s.hasProblem(p):
			next = append(next, p)
		case !ok: // it was removed
		case s.unusable[p.files.Cert] && len(next[i].cert.Certificate) < len(p.cert.Certificate):
			next[i] = p // its chain is not yet renewed
		default:
			if err := checkReplacement(p, next[i]); err != nil {
				s.problems = append(s.problems, err)
				next[i] = p
			}
		}
	}
	return next
}

// hasProblem reports whether a file of p exists and cannot be used as it is.
func (s *pemScan) hasProblem(p *keyPair) bool {
	return s.unusable[p.files.Cert] || s.unusable[p.files.Key] || s.unusable[filepath.Dir(p.files.Cert)] || s.unusable[filepath.Dir(p.files.Key)]
}
