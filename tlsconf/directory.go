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
	mayEmpty bool     // the server has other certificates
	pairs    []*pair  // as last good, in the order in which they are served
	problem  error    // what was wrong when it was last read
	advice   []error  // on what keeps nothing from being served
	told     []error  // of advice, in the log
	entries  []string // files and folders that were there, sorted
}

// reload reads the directory again. It reports whether pairs are others now. Its error
// has everything that is wrong, by name; a pair of which a part is wrong stays as it was.
func (d *directory) reload(now time.Time) (changed bool, err error) {
	defer func() { d.problem = err }()
	entries, err := listPEM(d.path)
	if err != nil {
		return false, err
	}
	d.entries = entries
	s := readPEM(entries)
	s.old = d.pairs
	next := s.merge(d.pairs, s.pairs())
	d.advice = s.advice
	order(next, now)
	if len(next) == 0 && !d.mayEmpty && len(d.pairs) > 0 {
		return false, errors.Join(append(s.problems, &FileError{d.path, errors.New("no certificate with its key is left")})...)
	}
	if !slices.EqualFunc(d.pairs, next, func(a, b *pair) bool { return a.sum == b.sum && a.files == b.files }) {
		d.pairs, changed = next, true
	}
	return changed, errors.Join(s.problems...)
}

// order puts pairs in the order in which they are served: what is valid first, by the
// names of the files. Those that share a name stand together where the first of them
// does, the newest before the others, so that a renewal changes no default but its own.
func order(pairs []*pair, now time.Time) {
	slices.SortFunc(pairs, func(a, b *pair) int {
		return cmp.Or(after(a.valid(now), b.valid(now)), strings.Compare(a.files.Cert, b.files.Cert),
			strings.Compare(string(a.sum[:]), string(b.sum[:])))
	})
	up := make([]int, len(pairs)) // a tree for all that share names; its root is the first of them
	root := func(i int) int {
		for up[i] != i {
			i = up[i]
		}
		return i
	}
	named, place := make(map[string]int), make(map[*pair]int)
	for i, p := range pairs {
		up[i] = i
		for _, name := range certificateNames(p.cert) {
			if j, shared := named[name]; shared {
				a, b := root(i), root(j)
				up[max(a, b)] = min(a, b)
			}
			named[name] = i
		}
	}
	for i, p := range pairs {
		place[p] = root(i)
	}
	slices.SortStableFunc(pairs, func(a, b *pair) int {
		return cmp.Or(after(a.valid(now), b.valid(now)), cmp.Compare(place[a], place[b]),
			b.cert.Leaf.NotBefore.Compare(a.cert.Leaf.NotBefore))
	})
}

// advise logs what of the advice is new.
func (d *directory) advise(log *zap.Logger) {
	said := func(err error) bool {
		return slices.ContainsFunc(d.told, func(old error) bool { return old.Error() == err.Error() })
	}
	for _, err := range d.advice {
		if !said(err) {
			log.Warn("a key should not be among the certificates", zap.Error(err))
		}
	}
	d.told = d.advice
}

// after orders what is valid before what is not.
func after(a, b bool) int {
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
		below, _ := os.ReadDir(name) // an error is told of when the entry is read
		for _, e := range below {
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

// merge puts together what is served next: the new pairs, and the old ones of which a
// part is in trouble, or which the new files are worse than.
func (s *scan) merge(old, found []*pair) (next []*pair) {
	next = found
	at, byFile := make(map[string]int), make(map[string]int)
	for i, n := range next {
		at[n.leaf()] = i
	}
	known := make(map[string]bool)
	for _, p := range old {
		known[p.leaf()] = true
	}
	for i, n := range next {
		if !known[n.leaf()] { // else it is no other's successor
			byFile[n.files.Cert], byFile[n.files.Key] = i, i
		}
	}
	for _, p := range old {
		if i, same := at[p.leaf()]; same {
			// The leaf alone beside a chain that is being written.
			if len(next[i].cert.Certificate) < len(p.cert.Certificate) && s.troubled(p) {
				next[i] = p
			}
			continue
		}
		i, renewed := byFile[p.files.Cert]
		if !renewed {
			i, renewed = byFile[p.files.Key]
		}
		switch {
		case !renewed && s.troubled(p):
			next = append(next, p)
		case !renewed: // it was removed
		case s.bad[p.files.Cert] && len(next[i].cert.Certificate) < len(p.cert.Certificate):
			next[i] = p // its chain is yet to be renewed
		default:
			if err := worse(p, next[i]); err != nil {
				s.problems = append(s.problems, err)
				next[i] = p
			}
		}
	}
	return next
}

// troubled says whether a file of p is there and cannot be used as it is.
func (s *scan) troubled(p *pair) bool {
	return s.bad[p.files.Cert] || s.bad[p.files.Key] || s.bad[filepath.Dir(p.files.Cert)] || s.bad[filepath.Dir(p.files.Key)]
}

// makePair is the pair of a certificate and its key.
func makePair(cert tls.Certificate, files KeyPair) *pair {
	h := sha256.New()
	for _, der := range cert.Certificate {
		h.Write(der)
	}
	return &pair{files: files, cert: &cert, sum: digest(h.Sum(nil))}
}
