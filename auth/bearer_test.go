package auth

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
)

// bearerResult is the outcome of one message to a bearer mechanism.
type bearerResult struct {
	user, token string
	accepted    bool
}

// sendBearer sends one message to a new server of a mechanism.
func sendBearer(mechanism, message string) (got bearerResult, challenge []byte, done bool, err error) {
	accept := func(user, token string, parseErr error) error {
		if parseErr == nil {
			got = bearerResult{user, token, true}
		}
		return parseErr
	}
	server := &bearerServer{parseOAuthBearer, accept}
	if mechanism == XOAuth2 {
		server = &bearerServer{parseXOAuth2, accept}
	}
	challenge, done, err = server.Next([]byte(message))
	return got, challenge, done, err
}

func TestValidBearerMessagesAreAccepted(t *testing.T) {
	for message, want := range map[string]bearerResult{
		"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01": {"user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", true}, // RFC 7628 §4.1
		"y,a=alice,\x01auth=bearer t\x01\x01":                                      {"alice", "t", true},
		"n,,\x01auth=BEARER   a.b-c_d~e+f/g=\x01\x01":                              {"", "a.b-c_d~e+f/g=", true},
		"n,a=a=2Cb=3Dc=3D2C,\x01auth=Bearer t\x01\x01":                             {"a,b=c=2C", "t", true},
		"n,a=a,\x01mthd=POST\x01path=/\x01qs=a=b\x01new=\x01auth=Bearer t\x01\x01": {"a", "t", true},
	} {
		if got, _, done, err := sendBearer(OAuthBearer, message); got != want || !done || err != nil {
			t.Errorf("%q: %+v, %v, %v", message, got, done, err)
		}
	}
	for message, want := range map[string]bearerResult{
		"user=someuser@example.com\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\x01\x01": {"someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg", true}, // Google's own example
		"auth=bearer t\x01user=a\x01\x01": {"a", "t", true},
	} {
		if got, _, done, err := sendBearer(XOAuth2, message); got != want || !done || err != nil {
			t.Errorf("%q: %+v, %v, %v", message, got, done, err)
		}
	}
}

func TestMalformedBearerMessagesAreRefused(t *testing.T) {
	bad := map[string][]string{
		OAuthBearer: {
			"", "\x01", "\x01\x01", "n", "n,", "n,,", "n,,\x01", "n,,\x01\x01", "n,,\x01auth=Bearer t", "n,,\x01auth=Bearer t\x01",
			"p=tls-exporter,,\x01auth=Bearer t\x01\x01", "F,n,,\x01auth=Bearer t\x01\x01", "N,,\x01auth=Bearer t\x01\x01",
			"n,a=,\x01auth=Bearer t\x01\x01", "n,b=a,\x01auth=Bearer t\x01\x01", "n,a=a\x01auth=Bearer t\x01\x01",
			"n,a=a,b,\x01auth=Bearer t\x01\x01", "n,a=a=b,\x01auth=Bearer t\x01\x01", "n,a=a=2c,\x01auth=Bearer t\x01\x01",
			"n,a==2=2CC,\x01auth=Bearer t\x01\x01", "n,a=a\r\nb,\x01auth=Bearer t\x01\x01", "n,a=a\x00,\x01auth=Bearer t\x01\x01",
			"n,,\x01auth=Bearer t\x01auth=Bearer u\x01\x01", "n,,\x01auth\x01\x01", "n,,\x01=x\x01auth=Bearer t\x01\x01",
			"n,,\x01a1=x\x01auth=Bearer t\x01\x01", "n,,\x01\u212a=x\x01auth=Bearer t\x01\x01", "n,,\x01AUTH=Bearer t\x01\x01",
			"n,,\x01auth=Bearer t\x01\x01\x01", "n,,\x01\x01auth=Bearer t\x01\x01",
			"n,,\x01auth=Bearer t\x01\x01n,,\x01auth=Bearer u\x01\x01",
		},
		XOAuth2: {
			"", "\x01", "\x01\x01", "user=a", "user=a\x01\x01", "auth=Bearer t\x01\x01", "user=\x01auth=Bearer t\x01\x01",
			"user=a\x01user=b\x01auth=Bearer t\x01\x01", "user=a\nb\x01auth=Bearer t\x01\x01", "user=a\x7f\x01auth=Bearer t\x01\x01",
			"n,a=a,\x01auth=Bearer t\x01\x01",
		},
	}
	for mechanism, front := range map[string]string{OAuthBearer: "n,a=a,\x01auth=", XOAuth2: "user=a\x01auth="} {
		for _, value := range []string{
			"", "Bearer", "Bearer ", "Bearer =", "Bearer  ==", "Basic dTpw", "Bearert", "Bearer\tt", "Bearer t t", "Bearer t\r\n", "Bearer t=a",
			"Bearer t\x00", "Bearer \u00e9", "Bearer \xff", `Bearer "t"`, "Bearer t,", "\u0299earer t",
			"Bearer " + strings.Repeat("t", identity.MaxToken+1),
		} {
			bad[mechanism] = append(bad[mechanism], front+value+"\x01\x01")
		}
	}
	for mechanism, messages := range bad {
		for _, m := range messages {
			if got, challenge, done, err := sendBearer(mechanism, m); got.accepted || done || err == nil || challenge != nil {
				t.Errorf("%s %.80q: %+v, %v, %v", mechanism, m, got, done, err)
			}
		}
	}
}

func TestBearerRefusalEndsExchange(t *testing.T) {
	no := errors.New("no")
	for _, server := range []sasl.Server{
		&bearerServer{parseOAuthBearer, func(string, string, error) error { return no }}, &bearerServer{parseXOAuth2, func(string, string, error) error { return no }},
	} {
		if challenge, done, err := server.Next(nil); challenge == nil || len(challenge) > 0 || done || err != nil {
			t.Errorf("without an initial response: %q, %v, %v", challenge, done, err)
		}
		if _, done, err := server.Next([]byte{}); done || err == nil {
			t.Errorf("an empty line: %v, %v", done, err)
		}
		for _, m := range []string{"n,a=a,\x01auth=Bearer t\x01\x01", "user=a\x01auth=Bearer t\x01\x01"} {
			if _, done, err := server.Next([]byte(m)); done || err == nil {
				t.Errorf("%q: %v, %v", m, done, err)
			}
		}
	}
}

func TestGoSASLOAuthBearerClientIsAccepted(t *testing.T) {
	client := sasl.NewOAuthBearerClient(&sasl.OAuthBearerOptions{Username: "alice", Token: "t0ken", Host: "mail.example.org", Port: 993})
	_, message, err := client.Start()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, done, err := sendBearer(OAuthBearer, string(message)); got != (bearerResult{"alice", "t0ken", true}) || !done || err != nil {
		t.Errorf("%+v, %v, %v", got, done, err)
	}
}

func TestARefusedTokenIsExplainedInJSON(t *testing.T) {
	r := TokenRefusal{Scope: `mail "all"`, DiscoveryURL: "https://id.example.org/.well-known/openid-configuration"}
	for mechanism, want := range map[string]map[string]string{
		SASLOAuthBearer: {"status": "invalid_token", "scope": r.Scope, "openid-configuration": r.DiscoveryURL},
		SASLXOAuth2:     {"status": "401", "schemes": "Bearer", "scope": r.Scope},
	} {
		var got map[string]string
		if err := json.Unmarshal(r.Challenge(mechanism), &got); err != nil || len(got) != len(want) {
			t.Fatalf("%s: %v, %v", mechanism, got, err)
		}
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s is %q", mechanism, key, got[key])
			}
		}
	}
	if got := r.Challenge(SASLPlain); got != nil {
		t.Errorf("PLAIN: %q", got)
	}
	if got := string(TokenRefusal{}.Challenge(SASLOAuthBearer)); got != `{"status":"invalid_token"}` {
		t.Errorf("without a provider: %s", got)
	}
}

// FuzzBearer compares the accepted messages with those of an independent grammar.
func FuzzBearer(f *testing.F) {
	f.Add("n,a=user@example.com,\x01host=h\x01auth=Bearer t=\x01\x01")
	f.Add("user=a\x01auth=Bearer t\x01\x01")
	f.Add("y,a==2C=3D,\x01auth=bearer  a/b\x01x=\x01\x01")
	grammar := map[string]*regexp.Regexp{
		OAuthBearer: regexp.MustCompile(`(?s)^[ny],(?:a=((?:[^=,\x00-\x1f\x7f]|=2C|=3D)+))?,\x01(?:[a-zA-Z]+=[^\x01]*\x01)+\x01$`),
		XOAuth2:     regexp.MustCompile(`(?s)^(?:[a-zA-Z]+=[^\x01]*\x01)*?user=([^\x00-\x1f\x7f]+)\x01(?:[a-zA-Z]+=[^\x01]*\x01)*\x01$`),
	}
	token := regexp.MustCompile(`(?s)\x01auth=(?i:bearer) +([-A-Za-z0-9._~+/]+=*)\x01`)
	keys := regexp.MustCompile(`\x01([a-zA-Z]+)=`)
	f.Fuzz(func(t *testing.T, message string) {
		for mechanism, form := range grammar {
			got, _, done, err := sendBearer(mechanism, message)
			shape, with := form.FindStringSubmatch(message), token.FindStringSubmatch("\x01"+message)
			want, seen := len(message) <= maxBearerMessage && shape != nil && with != nil, map[string]bool{}
			for _, k := range keys.FindAllStringSubmatch("\x01"+message, -1) {
				want, seen[k[1]] = want && !seen[k[1]], true
			}
			if got.accepted != want || done != want || (err == nil) != want {
				t.Fatalf("%s %q: %+v, want %v", mechanism, message, got, want)
			}
			if want && (got.token != with[1] || got.user != strings.NewReplacer("=2C", ",", "=3D", "=").Replace(shape[1]) && mechanism == OAuthBearer ||
				mechanism == XOAuth2 && got.user != shape[1]) {
				t.Fatalf("%s %q: %+v", mechanism, message, got)
			}
		}
	})
}
