package auth

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// parseReference reads the messages of a whole exchange without the code of this package. It
// returns the user and the credential by a plain reading of the mechanism's text.
func parseReference(mechanism string, messages [][]byte) (user, credential string, ok bool) {
	first := string(messages[0])
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch mechanism {
	case "EXTERNAL": // of alice's certificate
		return "alice@example.org", "", len(messages) == 1 && (first == "" || strings.EqualFold(addDomain(first), "alice@example.org"))
	case OAuthBearer:
		m := regexp.MustCompile(`(?s)^[ny],(?:a=([^,=]+))?,\x01(.*)$`).FindStringSubmatch(first)
		if m == nil {
			return "", "", false // Canonicalize refuses every name that needs escapes
		}
		user, credential, ok = m[1], findBearer(m[2]), findBearer(m[2]) != ""
	case XOAuth2:
		m := regexp.MustCompile(`(?:^|\x01)user=([^\x01]+)\x01`).FindStringSubmatch(first)
		if m == nil {
			return "", "", false
		}
		user, credential, ok = m[1], findBearer(first), findBearer(first) != ""
	case "LOGIN":
		if len(messages) != 2 {
			return "", "", false
		}
		user, credential = first, string(messages[1])
		ok = credential != "" && len(credential) <= 1024
	case "PLAIN":
		if len(messages) != 1 || bytes.Count(messages[0], []byte{0}) != 2 {
			return "", "", false
		}
		authzid, rest, _ := strings.Cut(first, "\x00")
		user, credential, _ = strings.Cut(rest, "\x00")
		ok = (authzid == "" || strings.EqualFold(addDomain(authzid), addDomain(user))) &&
			credential != "" && len(credential) <= 1024
	}
	if user == "" && mechanism == OAuthBearer {
		return "", credential, ok
	}
	return strings.ToLower(addDomain(user)), credential, ok && !strings.ContainsFunc(user+credential, control)
}

// findBearer returns the token among the pairs, or "".
func findBearer(pairs string) string {
	if !regexp.MustCompile(`^(?:[A-Za-z]+=[^\x01]*\x01)+\x01$`).MatchString(pairs) || strings.Count("\x01"+pairs, "\x01auth=") != 1 {
		return ""
	}
	m := regexp.MustCompile(`(?i)(?:^|\x01)(?-i:auth)=bearer +([-._~+/A-Za-z0-9]+=*)\x01`).FindStringSubmatch(pairs)
	if m == nil {
		return ""
	}
	return m[1]
}

func addDomain(user string) string {
	if strings.Contains(user, "@") {
		return user
	}
	return user + "@example.org"
}

// newAuthWithAllMechanisms offers all mechanisms that need one or two messages.
func newAuthWithAllMechanisms(t testing.TB) *Authenticator {
	t.Helper()
	a, err := New(testbed.WithDefaults(Config{
		Settings: Settings{Methods: []string{OAuth, Passthrough}, NameRules: identity.NamesInDomain("example.org"), Mechanisms: []string{"PLAIN", "LOGIN", "EXTERNAL", OAuthBearer, XOAuth2}, External: ExternalSettings{SAN: "email"}},
	}, "methods"), Sources{OAuth: failToken}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// FuzzSASLExchange changes the messages of an honest client. An accepted login must have the
// user and the credential that parseReference reads. With a password mechanism, a login that
// parseReference reads must be accepted if Canonicalize accepts the name.
func FuzzSASLExchange(f *testing.F) {
	f.Add("", "alice", "x", uint16(0), byte(0), true)
	f.Add("alice", "Alice@example.org", "pässwörd", uint16(3), byte(0x20), false)
	f.Add("bob", "alice", "x\x00y", uint16(1), byte(0x80), true)
	f.Add("alice", "alice", "ya29.a-b_c~d+e/f==", uint16(40), byte(0), true)
	a := newAuthWithAllMechanisms(f)
	c := verifiedClient(selfSigned(f, ecdsaKey(x509.ECDSAWithSHA256), withNames([]string{"alice@example.org"}, nil, nil)).Leaf)
	f.Fuzz(func(t *testing.T, authzid, user, password string, at uint16, flip byte, first bool) {
		for mechanism, messages := range map[string][][]byte{
			"PLAIN":     {[]byte(authzid + "\x00" + user + "\x00" + password)},
			"LOGIN":     {[]byte(user), []byte(password)},
			"EXTERNAL":  {[]byte(authzid)},
			OAuthBearer: {[]byte("n,a=" + user + ",\x01host=mail\x01auth=Bearer " + password + "\x01\x01")},
			XOAuth2:     {[]byte("user=" + user + "\x01auth=Bearer " + password + "\x01\x01")},
		} {
			if m := messages[int(at)%len(messages)]; len(m) > 0 {
				m[int(at)%len(m)] ^= flip
			}
			e, _ := a.Start(mechanism, c)
			send := messages
			if !first {
				send = append([][]byte{nil}, messages...)
			}
			_, done, err := runExchange(e, send...)
			checkOutcome(t, mechanism, messages, e.Login(), done && err == nil)
		}
	})
}

// checkOutcome compares the outcome of an exchange with that of parseReference.
func checkOutcome(t *testing.T, mechanism string, messages [][]byte, l Login, accepted bool) {
	t.Helper()
	user, credential, ok := parseReference(mechanism, messages)
	got := l.Password.Reveal() + l.Token.Reveal()
	if accepted && (!ok || l.User.String() != user || got != credential) {
		t.Fatalf("%s %q: accepted as %q with %q, the reference has %q with %q, %v", mechanism, messages, l.User, got, user, credential, ok)
	}
	if !accepted && l != (Login{}) {
		t.Fatalf("%s %q: refused, but leaves a login", mechanism, messages)
	}
	if _, err := identity.Canonicalize(user, ""); ok && err == nil && !accepted && (mechanism == "PLAIN" || mechanism == "LOGIN") {
		t.Fatalf("%s %q: refused", mechanism, messages)
	}
}

// FuzzSCRAM runs a client, honest except for a user and a password that it may not know, and
// changes one byte on the way. An accepted login must have a valid proof by a plain reading of
// RFC 5802, for these messages and this connection. A hostile server is not fuzzed: the gateway
// has no SCRAM client.
func FuzzSCRAM(f *testing.F) {
	f.Add("alice", "pencil", uint16(0), byte(0), false, false)
	f.Add("Alice@example.org", "pencil", uint16(5), byte(0x20), true, true)
	f.Add("unknown", "pencil", uint16(90), byte(1), true, false)
	f.Add("a=2Cb,c", "p\u00adencil", uint16(0), byte(3), false, true)
	a := newScramAuth(f)
	state, c := handshake(f, selfSigned(f, ecdsaKey(x509.ECDSAWithSHA256), nil), tls.VersionTLS13)
	binding, err := scram.NewTLSExporterBinding(&state)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, user, password string, at uint16, flip byte, final, plus bool) {
		lib, err := scram.SHA256.NewClient(user, password, "")
		if err != nil {
			t.Skip("no password that a client would send")
		}
		client, mechanism := lib.NewConversation(), scramSHA256
		if plus {
			client, mechanism = lib.NewConversationWithChannelBinding(binding), scramSHA256Plus
		}
		corrupt := func(message string, now bool) []byte {
			if m := []byte(message); now && len(m) > 0 {
				m[int(at)%len(m)] ^= flip
				return m
			}
			return []byte(message)
		}
		e, _ := a.Start(mechanism, c)
		message, err := client.Step("")
		if err != nil {
			t.Skip("no name that a client would send")
		}
		first := corrupt(message, !final)
		challenge, done, err := e.Next(context.Background(), first)
		if err != nil || done {
			expectDenied(t, a, e, err)
			return
		}
		if message, err = client.Step(string(challenge)); err != nil {
			return // the changed nonce is refused
		}
		last := corrupt(message, final)
		reply, done, err := e.Next(context.Background(), last)
		if err != nil || !done {
			t.Fatalf("the last message: %v, %v", done, err)
		}
		id, err := a.Authenticate(context.Background(), e.Login())
		valid := isValidProof(string(first), string(challenge), string(last), plus, binding.Data)
		if (err == nil) != valid || (reply != nil) != valid {
			t.Fatalf("%q %q %q: %v, and by RFC 5802 %v", first, challenge, last, err, valid)
		}
		if err == nil && id.User().String() != "alice@example.org" {
			t.Fatalf("accepted as %v", id)
		}
		if err != nil && !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
	})
}

func expectDenied(t *testing.T, a *Authenticator, e *Exchange, err error) {
	t.Helper()
	if !errors.Is(err, ErrDenied) || e.Login() != (Login{}) {
		t.Fatalf("%v, %+v", err, e.Login())
	}
	if _, err := a.Authenticate(context.Background(), e.Login()); !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
}

// isValidProof reads the three messages as in RFC 5802 §5 and reports whether the user is alice
// and her password "pencil".
func isValidProof(first, challenge, final string, plus bool, binding []byte) bool {
	flag := "n"
	if plus {
		flag = "p=tls-exporter"
	}
	bare, ok := strings.CutPrefix(first, flag+",,")
	m := regexp.MustCompile(`(?s)^c=([^,]*),r=([^,]*)(?:,.*)?,p=([^,]*)$`).FindStringSubmatch(final)
	name := regexp.MustCompile(`^n=([^,]*),r=`).FindStringSubmatch(bare)
	nonce := regexp.MustCompile(`^r=([^,]*),s=`).FindStringSubmatch(challenge)
	if !ok || m == nil || name == nil || nonce == nil || !strings.EqualFold(addDomain(name[1]), "alice@example.org") || nonce[1] != m[2] {
		return false
	}
	binds := []byte(flag + ",,")
	if plus {
		binds = append(binds, binding...)
	}
	if got, err := base64.StdEncoding.DecodeString(m[1]); err != nil || !bytes.Equal(got, binds) {
		return false
	}
	proof, err := base64.StdEncoding.DecodeString(m[3])
	if err != nil || len(proof) != sha256.Size {
		return false
	}
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	salted, _ := pbkdf2.Key(sha256.New, "pencil", salt, 4096, sha256.Size)
	sum := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := sum(salted, "Client Key")
	stored := sha256.Sum256(key)
	signature := sum(stored[:], bare+","+challenge+","+final[:strings.LastIndex(final, ",p=")])
	for i := range signature {
		signature[i] ^= proof[i]
	}
	return bytes.Equal(signature, key)
}
