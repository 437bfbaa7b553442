package tlsconf

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// maxEntries bounds the files and folders of a directory.
const maxEntries = 4_096

// directory is a folder of certificates and keys, and the folders in it, as certbot's
// live/ has them. A key is for the certificates with its public key, wherever it is.
type directory struct {
	// Set once.
	path string

	// Owned by the Server, under its mu.
	canBeEmpty     bool       // the server has other certificates
	pairs          []*keyPair // as last good, in the order in which they are served
	lastErr        error      // what was wrong when it was last read
	warnings       []error    // on what keeps nothing from being served
	loggedWarnings []error    // of advice, in the log
	entries        []string   // files and folders that were there, sorted
}

// reload reads the directory again. It reports whether pairs are others now. Its error
// has everything that is wrong, by name; a pair of which a part is wrong stays as it was.
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

// sortKeyPairs puts pairs in the order in which they are served: what is valid first, by the
// names of the files. Those that share a name stand together where the first of them
// does, the newest before the others, so that a renewal changes no default but its own.
func sortKeyPairs(pairs []*keyPair, now time.Time) {
	slices.SortFunc(pairs, func(a, b *keyPair) int {
		return cmp.Or(compareValidity(a.isValid(now), b.isValid(now)), strings.Compare(a.files.Cert, b.files.Cert),
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
		return cmp.Or(compareValidity(a.isValid(now), b.isValid(now)), cmp.Compare(group[a], group[b]),
			b.cert.Leaf.NotBefore.Compare(a.cert.Leaf.NotBefore))
	})
}

// logWarnings logs what of the advice is new.
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

// compareValidity orders what is valid before what is not.
func compareValidity(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// listPEM lists the files of a directory, the folders in it, and the files of those.
// What begins with a dot is not looked at: Kubernetes keeps its versions there.
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
				entries = append(entries, name) // also a link that leads nowhere, to be told of
			}
			continue
		}
		entries = append(entries, name)
		sub, _ := os.ReadDir(name) // an error is told of when the entry is read
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

// isPEM says by a file's name whether it may hold certificates or keys.
func isPEM(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".pem", ".crt", ".cer", ".key":
		return true
	}
	return false
}

// mergeKeyPairs puts together what is served next: the new pairs, and the old ones of which a
// part is in trouble, or which the new files are worse than.
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
		if !oldLeaves[n.leafDER()] { // else it is no other's successor
			byFile[n.files.Cert], byFile[n.files.Key] = i, i
		}
	}
	for _, p := range old {
		if i, ok := byLeaf[p.leafDER()]; ok {
			// The leaf alone beside a chain that is being written.
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
			next[i] = p // its chain is yet to be renewed
		default:
			if err := checkReplacement(p, next[i]); err != nil {
				s.problems = append(s.problems, err)
				next[i] = p
			}
		}
	}
	return next
}

// hasProblem says whether a file of p is there and cannot be used as it is.
func (s *pemScan) hasProblem(p *keyPair) bool {
	return s.unusable[p.files.Cert] || s.unusable[p.files.Key] || s.unusable[filepath.Dir(p.files.Cert)] || s.unusable[filepath.Dir(p.files.Key)]
}

// newKeyPair is the pair of a certificate and its key.
func newKeyPair(cert tls.Certificate, files CertFiles) *keyPair {
	h := sha256.New()
	for _, der := range cert.Certificate {
		h.Write(der)
	}
	return &keyPair{files: files, cert: &cert, checksum: checksum(h.Sum(nil))}
}
