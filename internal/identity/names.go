package identity

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/secure/precis"
)

// OptionalCharacters are the characters that an operator may allow in the local part besides
// a-z, 0-9 and . - _. The set is closed. Every other character has a meaning where a name is
// used. * and : separate (a master login, a passwd-file, a key). / and ~ form paths, % and $
// variables. { and } choose a slot of a Redis Cluster. *, ?, [, ] and ^ are patterns. The
// others quote, comment or begin a command.
const OptionalCharacters = "+'&="

// NameRules are the operator's rules for user names.
type NameRules struct {
	Domain string `yaml:"-"` // appended to a name without an @; "": none

	Characters string            `yaml:"characters" example:"+'" reload:"restart" doc:"Characters of + ' & = that names may have before the @, besides a-z, 0-9 and . - _. No other can be allowed: each has a meaning in a key, a path, a pattern, a quotation or a master login. The backend must allow them too: auth_username_chars of Dovecot."`
	UTF8       bool              `yaml:"utf8" default:"false" reload:"restart" doc:"Names may have letters and digits of all scripts (RFC 6531). They are compared and sent in the form of RFC 8265 (lower case, NFC); the part after the @ in its ASCII form, as in the DNS (xn--…)."`
	Detail     string            `yaml:"detail" default:"keep" oneof:"keep strip" reload:"restart" doc:"keep: + is an ordinary character, which characters may allow. strip: alice+lists@example.org becomes alice@example.org."`
	Prefixes   map[string]string `yaml:"prefixes" example:"{CORP: corp.example.org}" reload:"restart" doc:"For names such as CORP\\alice: the part before the backslash, in any case, and the domain it stands for. An empty domain removes the prefix, and the rest is read as a name without one. Names with another prefix are refused."`
}

// StripDetail is the Detail with which user+detail is user.
const StripDetail = "strip"

// Names makes canonical names by one set of NameRules. The zero Names has the default alphabet
// and no domain. It never changes.
type Names struct{ rules *NameRules }

// NameRulesError reports an invalid field of NameRules.
type NameRulesError struct{ Field, Reason string }

// Error implements error.
func (e *NameRulesError) Error() string { return e.Field + ": " + e.Reason }

// NewNames checks the rules and returns Names that follow them. The error is a *NameRulesError.
func NewNames(s NameRules) (Names, error) {
	if rest := strings.Trim(s.Characters, OptionalCharacters); rest != "" {
		return Names{}, &NameRulesError{"characters", "only " + OptionalCharacters + " can be allowed"}
	}
	if s.Detail == StripDetail && strings.Contains(s.Characters, detailSeparator) {
		return Names{}, &NameRulesError{"characters", "+ begins a detail, which is stripped"}
	}
	n := Names{&s}
	if _, err := n.CanonicalizeDomain(s.Domain); s.Domain != "" && err != nil {
		return Names{}, &NameRulesError{"domain", "is not a valid domain"}
	}
	prefixes := make(map[string]string, len(s.Prefixes))
	for prefix, domain := range s.Prefixes {
		key := strings.ToLower(prefix)
		if _, duplicate := prefixes[key]; duplicate {
			return Names{}, &NameRulesError{"prefixes", fmt.Sprintf("%.64q is there twice", prefix)}
		}
		if !isASCIIName(key) {
			return Names{}, &NameRulesError{"prefixes", fmt.Sprintf("%.64q has other characters than letters, digits and . - _", prefix)}
		}
		if domain != "" {
			var err error
			if domain, err = n.CanonicalizeDomain(domain); err != nil {
				return Names{}, &NameRulesError{"prefixes", fmt.Sprintf("%.64q does not map to a valid domain", prefix)}
			}
		}
		prefixes[key] = domain
	}
	s.Prefixes = prefixes
	return n, nil
}

// NamesInDomain returns Names with the default alphabet that append a domain; "" appends none.
func NamesInDomain(domain string) Names { return Names{&NameRules{Domain: domain}} }

// defaultRules are those of the zero Names. They never change.
var defaultRules NameRules

func (n Names) rulesOrDefault() *NameRules {
	if n.rules == nil {
		return &defaultRules
	}
	return n.rules
}

// Strict returns the rules for names from a token or a certificate. It refuses what n would map
// or strip, because two names of the issuer would become one user here.
func (n Names) Strict() Names {
	s := *n.rulesOrDefault()
	s.Detail, s.Prefixes = "", nil
	return Names{&s}
}

// UTF8 reports whether names may have non-ASCII characters.
func (n Names) UTF8() bool { return n.rulesOrDefault().UTF8 }

const (
	detailSeparator = "+"
	backslash       = `\`
)

// Canonicalize returns the canonical name of raw: prefix mapped, domain appended, letters in
// lower case, detail stripped. Non-ASCII characters follow RFC 8265 (UsernameCaseMapped) and
// RFC 5891; a domain is in its ASCII form. Canonicalize is idempotent. It refuses every other
// name with ErrName.
func (n Names) Canonicalize(raw string) (User, error) {
	if len(raw) == 0 || len(raw) > MaxUser {
		return User{}, ErrName
	}
	s := n.rulesOrDefault()
	name, prefixed, err := s.splitPrefix(raw)
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
		if domain, err = n.CanonicalizeDomain(domain); err != nil || hasDomain && prefixed != "" && prefixed != domain {
			return User{}, ErrName
		}
		domain = "@" + domain
	}
	if local, err = s.canonicalizeLocal(local); err != nil || len(local)+len(domain) > MaxUser {
		return User{}, ErrName
	}
	return User{local + domain}, nil
}

// splitPrefix removes the prefix before a backslash from raw, and returns the domain of the
// prefix; "" for none.
func (s *NameRules) splitPrefix(raw string) (name, domain string, err error) {
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

// canonicalizeLocal returns the canonical form of a local part, or of a name without a domain.
func (s *NameRules) canonicalizeLocal(part string) (string, error) {
	if !isASCII(part) {
		if !s.UTF8 {
			return "", ErrName
		}
		var err error
		if part, err = mapCase(part); err != nil {
			return "", err
		}
	}
	if s.Detail == StripDetail {
		part, _, _ = strings.Cut(part, detailSeparator)
	}
	part = lowerASCII(part)
	isForbidden := func(r rune) bool {
		return r < utf8.RuneSelf && !inAlphabet(r) && !strings.ContainsRune(s.Characters, r)
	}
	if strings.ContainsFunc(part, isForbidden) || strings.Trim(part, ".") == "" { // also ""; . and .. are paths
		return "", ErrName
	}
	return part, nil
}

// mapCase applies UsernameCaseMapped (RFC 8265 §3.3), which is not idempotent for every text. A
// text that changes a second time has no canonical form.
func mapCase(text string) (string, error) {
	once, err := precis.UsernameCaseMapped.String(text)
	if err != nil {
		return "", ErrName
	}
	if twice, err := precis.UsernameCaseMapped.String(once); err != nil || twice != once {
		return "", ErrName
	}
	return once, nil
}

// CanonicalizeDomain returns the canonical form of a domain: ASCII, as in the DNS.
func (n Names) CanonicalizeDomain(raw string) (string, error) {
	domain := raw
	if !isASCII(raw) {
		if !n.rulesOrDefault().UTF8 || !utf8.ValidString(raw) { // idna reads invalid UTF-8 as U+FFFD
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

// inAlphabet reports whether r is in the default alphabet: that of Dovecot's
// auth_username_chars in lower case, without the @.
func inAlphabet(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' || r == '_'
}

// isASCIIName reports whether s is not empty and all in the default alphabet.
func isASCIIName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !inAlphabet(r) })
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// lowerASCII leaves non-ASCII characters unchanged; mapCase maps their case.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}
