package identity

import (
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/secure/precis"
)

// MoreCharacters are the characters that may be allowed in the part before the @
// besides a-z, 0-9 and . - _. The set is closed. What is not in it means something
// where a name goes: * and : separate (a master login, a passwd-file, a key), / and
// ~ are paths, % and $ are variables, { and } choose a slot of a Redis Cluster, *, ?,
// [, ] and ^ are patterns, the others quote, comment or begin a command.
const MoreCharacters = "+'&="

// Spelling is how an operator has user names read.
type Spelling struct {
	Domain      string            // appended to a name without an @; "" appends none
	Characters  string            // allowed besides the default alphabet, of MoreCharacters
	UTF8        bool              // names of RFC 6531, by the rules of RFC 8265
	StripDetail bool              // user+detail is user
	Prefixes    map[string]string // PREFIX\user is user at this domain; "" is without the prefix
}

// Names makes canonical names by one Spelling. The zero Names has the default
// alphabet and no domain. It never changes.
type Names struct{ rules *Spelling }

// SpellingError is what is wrong with one field of a Spelling.
type SpellingError struct{ Field, Why string }

// Error implements error.
func (e *SpellingError) Error() string { return e.Field + ": " + e.Why }

// NewNames checks a Spelling. The error is a *SpellingError.
func NewNames(s Spelling) (Names, error) {
	if rest := strings.Trim(s.Characters, MoreCharacters); rest != "" {
		return Names{}, &SpellingError{"characters", "only " + MoreCharacters + " can be allowed"}
	}
	if s.StripDetail && strings.Contains(s.Characters, detail) {
		return Names{}, &SpellingError{"characters", "+ begins a detail, which is stripped"}
	}
	n := Names{&s}
	if _, err := n.Domain(s.Domain); s.Domain != "" && err != nil {
		return Names{}, &SpellingError{"domain", "has characters or a form that no domain has"}
	}
	prefixes := make(map[string]string, len(s.Prefixes))
	for prefix, to := range s.Prefixes {
		key := strings.ToLower(prefix)
		if _, twice := prefixes[key]; twice {
			return Names{}, &SpellingError{"prefixes", fmt.Sprintf("%.64q is there twice", prefix)}
		}
		if !isASCIIName(key) {
			return Names{}, &SpellingError{"prefixes", fmt.Sprintf("%.64q has other characters than letters, digits and . - _", prefix)}
		}
		if to != "" {
			var err error
			if to, err = n.Domain(to); err != nil {
				return Names{}, &SpellingError{"prefixes", fmt.Sprintf("%.64q leads to what is no domain", prefix)}
			}
		}
		prefixes[key] = to
	}
	s.Prefixes = prefixes
	return n, nil
}

// InDomain has the default alphabet and appends a domain; "" appends none.
func InDomain(domain string) Names { return Names{&Spelling{Domain: domain}} }

// Spelling is a copy of what n was made of.
func (n Names) Spelling() Spelling {
	if n.rules == nil {
		return Spelling{}
	}
	s := *n.rules
	s.Prefixes = maps.Clone(s.Prefixes)
	return s
}

// noSpelling is that of the zero Names. It never changes.
var noSpelling Spelling

func (n Names) spelling() *Spelling {
	if n.rules == nil {
		return &noSpelling
	}
	return n.rules
}

// Asserted is for names that somebody else vouches for, as in a token or a
// certificate: what n would map or strip is refused, because two names of theirs would
// be one of ours.
func (n Names) Asserted() Names {
	s := *n.spelling()
	s.StripDetail, s.Prefixes = false, nil
	return Names{&s}
}

// UTF8 reports whether names may have other characters than ASCII.
func (n Names) UTF8() bool { return n.spelling().UTF8 }

const (
	detail    = "+"
	backslash = `\`
)

// Canon makes the canonical name of raw: the prefix mapped, the domain appended,
// letters in lower case, the detail stripped, and what is not ASCII as RFC 8265
// (UsernameCaseMapped) and RFC 5891 have it; a domain is in its ASCII form.
// Canon(Canon(x)) == Canon(x). Every other name is refused with ErrName.
func (n Names) Canon(raw string) (User, error) {
	if len(raw) == 0 || len(raw) > MaxUser {
		return User{}, ErrName
	}
	s := n.spelling()
	name, prefixed, err := s.unprefix(raw)
	if err != nil {
		return User{}, err
	}
	local, domain, hasDomain := strings.Cut(name, "@")
	if hasDomain || prefixed != "" || s.Domain != "" {
		if !hasDomain {
			domain = s.Domain
			if prefixed != "" {
				domain = prefixed
			}
		}
		if domain, err = n.Domain(domain); err != nil || hasDomain && prefixed != "" && prefixed != domain {
			return User{}, ErrName
		}
		domain = "@" + domain
	}
	if local, err = s.local(local); err != nil || len(local)+len(domain) > MaxUser {
		return User{}, ErrName
	}
	return User{local + domain}, nil
}

// unprefix takes what stands before a backslash from raw, and gives the domain it
// stands for, "" for none.
func (s *Spelling) unprefix(raw string) (name, domain string, err error) {
	prefix, name, found := strings.Cut(raw, backslash)
	if !found {
		return raw, "", nil
	}
	domain, known := s.Prefixes[lowerASCII(prefix)]
	if !known {
		return "", "", ErrName
	}
	return name, domain, nil
}

// local is the canonical part before the @, or all of a name without one.
func (s *Spelling) local(part string) (string, error) {
	if !isASCII(part) {
		if !s.UTF8 {
			return "", ErrName
		}
		var err error
		if part, err = caseMapped(part); err != nil {
			return "", err
		}
	}
	if s.StripDetail {
		part, _, _ = strings.Cut(part, detail)
	}
	part = lowerASCII(part)
	for i := range len(part) {
		if c := part[i]; c < utf8.RuneSelf && !inAlphabet(c) && strings.IndexByte(s.Characters, c) < 0 {
			return "", ErrName
		}
	}
	if strings.Trim(part, ".") == "" { // "" too: . and .. are paths
		return "", ErrName
	}
	return part, nil
}

// caseMapped applies UsernameCaseMapped (RFC 8265 §3.3), which is not idempotent for
// every text: one that changes a second time has no canonical form.
func caseMapped(text string) (string, error) {
	once, err := precis.UsernameCaseMapped.String(text)
	if err != nil {
		return "", ErrName
	}
	if twice, err := precis.UsernameCaseMapped.String(once); err != nil || twice != once {
		return "", ErrName
	}
	return once, nil
}

// Domain is the canonical form of a domain: ASCII, as in the DNS.
func (n Names) Domain(raw string) (string, error) {
	domain := raw
	if !isASCII(raw) {
		if !n.spelling().UTF8 || !utf8.ValidString(raw) { // idna takes what is not UTF-8 for U+FFFD
			return "", ErrName
		}
		var err error
		if domain, err = idna.Lookup.ToASCII(raw); err != nil {
			return "", ErrName
		}
	}
	domain = lowerASCII(domain)
	if len(domain) > MaxUser || !isASCIIName(domain) || strings.HasPrefix(domain, ".") || strings.HasSuffix(domain, ".") ||
		strings.Contains(domain, "..") {
		return "", ErrName
	}
	return domain, nil
}

// inAlphabet reports whether c is in the default alphabet: that of Dovecot's
// auth_username_chars in lower case, without the @.
func inAlphabet(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_'
}

// isASCIIName reports whether s is not empty and all in the default alphabet.
func isASCIIName(s string) bool {
	for i := range len(s) {
		if !inAlphabet(s[i]) {
			return false
		}
	}
	return s != ""
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// lowerASCII leaves alone what is not ASCII: its case is caseMapped's.
func lowerASCII(s string) string {
	for i := range len(s) {
		if s[i] >= 'A' && s[i] <= 'Z' {
			return strings.Map(func(r rune) rune {
				if r >= 'A' && r <= 'Z' {
					return r + 'a' - 'A'
				}
				return r
			}, s)
		}
	}
	return s
}
