package admin

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/identity"
	"imapgate/internal/plainfile"
)

const (
	maxTokens     = 1000
	maxTokensFile = 1 << 20 // bytes
	maxTokenName  = 64      // bytes
)

// Token is a line of a file of tokens. Only the hash of the token is known.
type Token struct {
	Name    string
	Role    api.Role
	Hash    [sha256.Size]byte
	Expires time.Time // zero: never
}

// ParseToken parses a line "name role sha256-hex [expires]", with expires in RFC 3339 or as a
// date.
func ParseToken(line string) (t Token, err error) {
	words := strings.Fields(line)
	if len(words) < 3 || len(words) > 4 {
		return t, errors.New("expected: name role sha256-hex [expires]")
	}
	t.Name, t.Role = words[0], api.Role(words[1])
	switch n, err := hex.Decode(t.Hash[:], []byte(words[2])[:min(len(words[2]), 2*sha256.Size)]); {
	case !IsTokenName(t.Name):
		return t, errors.New("the name has characters other than a-z, A-Z, 0-9, . _ -, or is too long")
	case t.Role != api.Viewer && t.Role != api.Operator:
		return t, errors.New("the role is neither viewer nor operator")
	case err != nil || n != sha256.Size || len(words[2]) != 2*sha256.Size:
		return t, errors.New("the third word is not a SHA-256 in hex")
	}
	if len(words) == 4 {
		if t.Expires, err = time.Parse(time.RFC3339, words[3]); err != nil {
			t.Expires, err = time.Parse(time.DateOnly, words[3])
		}
		if err != nil {
			return t, errors.New("the fourth word is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z")
		}
	}
	return t, nil
}

// String returns the line of a token.
func (t Token) String() string {
	line := fmt.Sprintf("%s %s %x", t.Name, t.Role, t.Hash)
	if !t.Expires.IsZero() {
		line += " " + t.Expires.UTC().Format(time.RFC3339)
	}
	return line
}

// IsTokenName reports whether a token may have the name, which is in audit records.
func IsTokenName(name string) bool {
	return name != "" && len(name) <= maxTokenName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// ParseTokens parses a file of tokens. Empty lines and those that begin with # are ignored.
func ParseTokens(text []byte) (list []Token, err error) {
	var errs []error
	names := make(map[string]bool)
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		t, err := ParseToken(line)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		case names[t.Name]:
			errs = append(errs, fmt.Errorf("line %d: there is a token %s already", n, t.Name))
		case len(list) == maxTokens:
			return nil, fmt.Errorf("it has more than %d tokens", maxTokens)
		}
		names[t.Name] = true
		list = append(list, t)
	}
	return list, errors.Join(append(errs, lines.Err())...)
}

// Tokens are the tokens that the server accepts. It implements filewatch.Source.
type Tokens struct {
	// Set once.
	file  string          // "" for none
	admin identity.Secret // of the operator admin; zero for none

	list atomic.Pointer[[]Token] // of file
}

// OpenTokens reads the file of tokens, if cfg names one.
func OpenTokens(cfg Settings) (*Tokens, error) {
	t := &Tokens{file: cfg.TokensFile, admin: cfg.Token}
	t.list.Store(new([]Token))
	_, err := t.Reload()
	return t, err
}

// Files implements filewatch.Source.
func (t *Tokens) Files() []string {
	if t.file == "" {
		return nil
	}
	return []string{t.file}
}

// Reload implements filewatch.Source.
func (t *Tokens) Reload() (changed bool, err error) {
	if t.file == "" {
		return false, nil
	}
	list, err := readTokens(t.file)
	if err != nil {
		return false, err
	}
	old := t.list.Swap(&list)
	return !reflect.DeepEqual(*old, list), nil
}

func readTokens(path string) ([]Token, error) {
	file, _, err := plainfile.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxTokensFile+1))
	var list []Token
	switch {
	case err != nil:
	case len(text) > maxTokensFile:
		err = fmt.Errorf("it has more than %d bytes", maxTokensFile)
	default:
		list, err = ParseTokens(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// exist reports whether there is any token.
func (t *Tokens) exist() bool { return !t.admin.IsZero() || len(*t.list.Load()) > 0 || t.file != "" }

// find returns the caller that a token belongs to. It compares all hashes, so that the time
// does not reveal which of them is similar.
func (t *Tokens) find(token string) (found api.Caller, ok bool) {
	sum, admin := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(t.admin.Reveal()))
	if subtle.ConstantTimeCompare(sum[:], admin[:]) == 1 && !t.admin.IsZero() {
		found, ok = api.Caller{Name: "admin", Role: api.Operator}, true
	}
	now := time.Now()
	for _, candidate := range *t.list.Load() {
		isSame := subtle.ConstantTimeCompare(sum[:], candidate.Hash[:]) == 1
		if isSame && (candidate.Expires.IsZero() || now.Before(candidate.Expires)) {
			found, ok = cmp.Or(found, api.Caller{Name: candidate.Name, Role: candidate.Role}), true
		}
	}
	return found, ok
}
