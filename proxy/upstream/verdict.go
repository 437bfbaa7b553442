package upstream

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"imapgate/internal/imap"
)

// Verdict is what the result of a login means for the credentials.
type Verdict uint8

// The verdicts.
const (
	VerdictNone    Verdict = iota // no backend has checked them
	VerdictRight                  // right, even if the login was refused
	VerdictUnclear                // a backend answered, but its answer fits right and wrong ones
	VerdictWrong                  // wrong
)

// VerdictOf returns the verdict in an error of Login. It is about the client's credentials
// only if those were sent, so not with MasterLogin.
func VerdictOf(err error) Verdict {
	var forwarded *RefusedError
	var opaque *opaqueError
	switch {
	case err == nil:
		return VerdictRight
	case errors.As(err, &forwarded):
		return forwarded.verdict
	case errors.As(err, &opaque):
		return opaque.verdict
	case errors.Is(err, errNoLoginAnswer):
		return VerdictUnclear
	}
	return VerdictNone
}

// RevokesCredentials reports whether an error of Login means that the backend no longer
// accepts the credentials. Other refusals may be temporary.
func RevokesCredentials(err error) bool {
	var forwarded *RefusedError
	if errors.As(err, &forwarded) {
		return forwarded.Code == "EXPIRED" || forwarded.Code == "AUTHORIZATIONFAILED"
	}
	return errors.Is(err, ErrDenied)
}

// replyClass is the meaning of a response code in a NO to a login.
type replyClass struct {
	verdict Verdict
	reply   clientReply
}

// clientReply is what the client receives.
type clientReply uint8

const (
	replyUnavailable clientReply = iota // a constant: the code concerns the gateway's operator at most
	replyForwarded                      // the backend's code and text: it informs, and no client connects or sends anything elsewhere on it
	replyDenied                         // a constant: wrong credentials
)

// responseCodes are the codes with which servers are known to refuse a login. Any other code
// is VerdictUnclear and not forwarded: clients must not act on a code that the gateway does
// not know.
//
// A code is VerdictRight if it follows a successful check of the credentials or replaces the
// check, by its definition or by the server that sends it. Either way, it does not show that a
// guess was wrong.
var responseCodes = map[string]replyClass{
	// RFC 5530 section 3. These include all of Dovecot's except ALERT and REFERRAL.
	"AUTHENTICATIONFAILED": {VerdictWrong, replyDenied},
	"AUTHORIZATIONFAILED":  {VerdictRight, replyForwarded}, // "authentication succeeded", but not for this identity
	"EXPIRED":              {VerdictRight, replyForwarded}, // an old password, which the server may no longer be able to check
	"CONTACTADMIN":         {VerdictRight, replyForwarded}, // Dovecot's nologin, after the password was right
	"NOPERM":               {VerdictRight, replyForwarded},
	"INUSE":                {VerdictRight, replyForwarded},
	"LIMIT":                {VerdictRight, replyForwarded}, // Dovecot's mail_max_userip_connections
	"OVERQUOTA":            {VerdictRight, replyForwarded},
	"UNAVAILABLE":          {VerdictNone, replyForwarded}, // the user database is down
	"SERVERBUG":            {VerdictNone, replyForwarded},
	"PRIVACYREQUIRED":      {VerdictNone, replyUnavailable}, // the backend requires TLS from the gateway: a misconfiguration
	"CLIENTBUG":            {VerdictUnclear, replyUnavailable},
	"CANNOT":               {VerdictUnclear, replyUnavailable},
	"CORRUPTION":           {VerdictRight, replyUnavailable}, // in the user's mailbox

	// RFC 9051 section 7.1. Gmail sends "[ALERT] Invalid credentials" and "[ALERT] Too many
	// simultaneous connections": the text decides, if it is known.
	"ALERT": {VerdictUnclear, replyForwarded},

	"REFERRAL":  {VerdictRight, replyUnavailable}, // RFC 2221; Dovecot's nologin with host, after the password was right
	"WEBALERT":  {VerdictRight, replyUnavailable}, // Gmail: a page to log in at; not forwarded, as its argument is a link
	"THROTTLED": {VerdictNone, replyUnavailable},  // Gmail, Exchange: not checked
}

// phrase is the beginning of a text with which a server refuses a login, if the code is not
// specific enough.
type phrase struct {
	text    string // lower case; also shown in logs
	verdict Verdict
}

// noCertificateText is Dovecot's refusal of a login without a client certificate that it
// trusts (auth_ssl_require_client_cert). It does not close TLS.
const noCertificateText = "client didn't present valid ssl certificate"

// knownPhrases is the closed list of these texts.
var knownPhrases = []phrase{
	{"invalid credentials", VerdictWrong},                                   // Gmail, with ALERT
	{"too many simultaneous connections", VerdictRight},                     // Gmail, with ALERT
	{"application-specific password required", VerdictRight},                // Gmail, with ALERT
	{"please log in via your web browser", VerdictRight},                    // Gmail, with ALERT
	{"web login required", VerdictRight},                                    // Gmail, with ALERT
	{"your account is not enabled for imap use", VerdictRight},              // Gmail, with ALERT
	{"account exceeded command or bandwidth limits", VerdictRight},          // Gmail, with ALERT
	{"user is authenticated but not connected", VerdictRight},               // Exchange, as NO or BAD
	{"too many open connections", VerdictRight},                             // Cyrus
	{"maximum number of connections", VerdictRight},                         // Dovecot before it had codes
	{"login only available under a layer", VerdictNone},                     // Cyrus: a misconfiguration
	{"plaintext authentication disallowed on non-secure", VerdictNone},      // Dovecot: a misconfiguration
	{noCertificateText, VerdictNone},                                        // Dovecot, with ALERT: a misconfiguration
	{"generic failure", VerdictNone},                                        // Cyrus SASL: the password check is down
	{"login failed: generic failure", VerdictNone},                          // the same, to LOGIN
	{"remote authentication server unavailable", VerdictNone},               // Cyrus SASL
	{"login failed: remote authentication server unavailable", VerdictNone}, // the same, to LOGIN
	{"transient failure", VerdictNone},                                      // Cyrus SASL
	{"login failed: transient failure", VerdictNone},                        // the same, to LOGIN
	{"temporary problem", VerdictNone},                                      // Courier
	{"temporary authentication failure", VerdictNone},                       // Dovecot
	{"internal authentication failure", VerdictNone},                        // Dovecot
	{"authentication server is unavailable", VerdictNone},                   // several
	{"account is temporarily unavailable", VerdictNone},                     // Dovecot's and this gateway's own
	{"authentication failed", VerdictWrong}, {"login failed", VerdictWrong}, // most of them
}

// findPhrase returns the known phrase that a text begins with, or the zero phrase.
func findPhrase(text string) phrase {
	for _, p := range knownPhrases {
		if len(text) >= len(p.text) && strings.EqualFold(text[:len(p.text)], p.text) {
			return p
		}
	}
	return phrase{}
}

// DescribeResponse returns the parts of a status response that may be logged: its condition,
// its code if known, and at most a known phrase. A backend has received passwords and could
// repeat one in any form.
func DescribeResponse(res imap.Response) string {
	text := ""
	if res.IsStatus {
		text = res.Name
	}
	if _, isKnown := responseCodes[res.Code]; isKnown || slices.Contains(commandCodes, res.Code) {
		text += " [" + res.Code + "]"
	} else if res.Code != "" {
		text += " [unknown code]"
	}
	return strings.TrimSpace(text + " " + findPhrase(res.Text).text)
}

// commandCodes are the codes of commands after the login.
var commandCodes = []string{"ALREADYEXISTS", "BADCHARSET", "CLOSED", "MESSAGELIMIT", "NONEXISTENT", "PARSE", "TRYCREATE"}

// RefusedError is a backend's NO with a response code for the user (RFC 5530). Code and Text
// may be forwarded. The text of the error contains only the code.
type RefusedError struct {
	Code   string  // upper case, one of a closed list
	Text   string  // printable ASCII, 1 to maxText bytes
	Alerts []Alert // received before the NO

	verdict Verdict
}

func (r *RefusedError) Error() string { return "login refused: [" + r.Code + "]" }

// opaqueError is a backend's NO or BAD of which the client receives only a constant.
type opaqueError struct {
	class       error // ErrDenied, or a cause of ErrUnavailable
	verdict     Verdict
	description string // from DescribeResponse
}

func (r *opaqueError) Error() string { return r.class.Error() + ": " + r.description }
func (r *opaqueError) Unwrap() error { return r.class }

// loginError returns the error in the answer to a login.
func (c *loginConn) loginError(res imap.Response) error {
	if res.Name == "OK" {
		return nil
	}
	m, opaque := classifyReply(res), opaqueError{description: DescribeResponse(res)}
	master := c.cfg.Login == MasterLogin
	switch {
	case res.Name == "BAD":
		opaque.class, opaque.verdict = errLoginBad, m.verdict
	case res.Name != "NO":
		return errNoStatus
	case findPhrase(res.Text).text == noCertificateText:
		opaque.class = errClientCertificate
	case master && (m.reply == replyDenied || res.Code == "AUTHORIZATIONFAILED"):
		// The client's own password was right. The client must not be made to forget it
		// because the gateway's is wrong.
		opaque.class = errMasterDenied
	case m.reply == replyDenied:
		opaque.class, opaque.verdict = ErrDenied, m.verdict
	case m.reply == replyForwarded:
		text := cmp.Or(sanitizeText(res.Text), "Login refused.") // the grammar requires a text
		return &RefusedError{Code: res.Code, Text: text, Alerts: c.alerts, verdict: m.verdict}
	default:
		opaque.class, opaque.verdict = errOpaqueCode, m.verdict
	}
	return &opaque
}

// classifyReply returns the meaning of a NO or BAD to a login. The text counts only without a
// code, or with ALERT, which gives no reason.
func classifyReply(res imap.Response) replyClass {
	known := findPhrase(res.Text)
	m, ok := responseCodes[res.Code]
	switch {
	case res.Code != "" && res.Code != "ALERT":
		if !ok {
			return replyClass{VerdictUnclear, replyUnavailable}
		}
		return m
	case known.verdict == VerdictWrong && res.Name == "NO":
		return replyClass{VerdictWrong, replyDenied}
	case known.text != "":
		m.verdict = known.verdict
		return m
	case res.Code == "ALERT", res.Name == "BAD":
		m.verdict = VerdictUnclear
		return m
	}
	return replyClass{VerdictWrong, replyDenied}
}
