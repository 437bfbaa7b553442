package upstream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/tlsconf"
)

// Bounds on what is read from a backend before its login completes.
const (
	maxLine  = 8 << 10  // bytes of a line
	maxTotal = 64 << 10 // bytes in total

	maxAlerts = 4 // untagged ALERTs kept, each with up to maxText bytes
)

// Prefixes of the command tags on one connection.
const (
	tagCapability     = "C"
	tagStartTLS       = "S"
	tagID             = "I"
	tagCapsAfterLogin = "A"
	tagLogin          = "L" // later letters for other forms of the login
)

// loginConn is a connection to a backend until the tagged OK of its login.
type loginConn struct {
	// Set once.
	backend   *Backend
	cfg       *Config
	host      string // of the address
	conn      *imap.Conn
	tagSuffix string // at least 64 random bits, so that no answer can precede its command
	deadline  time.Time

	// Owned by the goroutine of Login.
	loginTag  string      // has its own random bits, which no earlier command reveals
	bytesLeft int         // left of maxTotal
	id        string      // for Conn.ID
	tlsConn   *tls.Conn   // nil before TLS
	tlsConfig *tls.Config // of tlsConn
	caps      imap.Caps   // latest list; unknown again after STARTTLS
	alerts    []Alert     // since the start of TLS; at most maxAlerts
	presented bool        // the credentials were sent, perhaps not completely
}

// loginOn logs in over nc, until ctx ends or the deadline. On success the Conn owns nc;
// otherwise nc is closed. sent reports whether the credentials may have been sent.
func (t attempt) loginOn(ctx context.Context, nc net.Conn, req Request, creds credentials) (conn *Conn, sent bool, err error) {
	if tcp, ok := nc.(*net.TCPConn); ok && t.cfg.WrapConn != nil && t.cfg.TLS != event.NoTLS {
		nc = t.cfg.WrapConn(tcp)
	}
	random := rand.Text() // 26 characters of 5 bits
	c := &loginConn{
		backend: t.address.backend, cfg: t.cfg, host: t.address.dial.host, conn: imap.NewConn(nc, imap.Responses, maxLine), deadline: t.deadline,
		tagSuffix: random[:13], loginTag: tagLogin + random[13:], bytesLeft: maxTotal,
	}
	release := c.conn.BindContext(ctx)
	c.conn.SetDeadline(t.bound(failoverAnswer)) // until the credentials are sent
	conn, err = c.logIn(req, creds)
	if err != nil && c.tlsConn != nil { // with TLS 1.3, a client certificate is rejected after the handshake
		err = tlsconf.ExplainWriteError(c.tlsConn, c.tlsConfig, err)
	}
	if !release() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = c.conn.Close() // a connection with a failed login is not reused
		return nil, c.presented, err
	}
	return conn, true, nil
}

// begin does what comes before the greeting: the PROXY header and implicit TLS, if configured.
func (c *loginConn) begin(client Client) error {
	if c.cfg.Forward == ForwardProxy {
		header, err := proxyHeader(client)
		if err == nil {
			_, err = c.conn.Write(header)
		}
		if err != nil {
			return err
		}
	}
	if c.cfg.TLS == event.ImplicitTLS {
		return c.handshakeTLS(c.cfg.clientTLS(c.host))
	}
	return nil
}

// greet reads the greeting, and begins TLS after it if that is configured.
func (c *loginConn) greet() error {
	if err := c.readGreeting(); err != nil {
		return err
	}
	if c.cfg.TLS == event.StartTLS {
		return c.startTLS(c.cfg.clientTLS(c.host))
	}
	return nil
}

// logIn is the whole dialogue: PROXY header, TLS, greeting, STARTTLS, a trustworthy capability
// list, the login and the capabilities after it.
func (c *loginConn) logIn(req Request, creds credentials) (*Conn, error) {
	if err := c.begin(req.Client); err != nil {
		return nil, err
	}
	if err := c.greet(); err != nil {
		return nil, err
	}
	if err := c.requireCaps(); err != nil {
		return nil, err
	}
	answer, err := c.authenticate(creds, req.Client)
	if err != nil {
		return nil, err
	}
	if err := c.loginError(answer); err != nil {
		return nil, err
	}
	ok := OK{Alerts: c.alerts, Text: sanitizeText(answer.Text)} // later alerts stay in buffered
	if ok.Text != "" && responseCodes[answer.Code].reply == replyForwarded {
		ok.Code = answer.Code
	}
	untagged, err := c.refreshCaps(answer)
	if err != nil {
		return nil, err
	}
	nc, buffered := c.conn.Detach()
	if !isOnlyUntagged(buffered) {
		return nil, errAfterLogin
	}
	return &Conn{
		user: req.User, caps: c.caps, ok: ok, id: c.id, nc: nc, buffered: append(untagged, buffered...),
	}, nil
}

// readGreeting reads the backend's first line.
func (c *loginConn) readGreeting() error {
	res, err := c.readResponse()
	switch {
	case err != nil:
		return err
	case res.Kind != imap.Untagged:
		return errGreeting
	case res.Name == "OK":
		c.record(res)
		return nil
	}
	if err := untaggedError(res); err != nil {
		return err
	}
	return errGreeting
}

// startTLS continues under TLS, or not at all. Bytes that were not requested may be an
// attacker's, and bytes after the OK would be read as if TLS had protected them
// (RFC 9051 §6.2.1).
func (c *loginConn) startTLS(cfg *tls.Config) error {
	if c.conn.Buffered() > 0 {
		return errUnsolicited
	}
	if err := c.requireCaps(); err != nil {
		return err
	}
	if !c.caps.Has("STARTTLS") {
		return errNoStartTLS
	}
	if c.conn.Buffered() > 0 {
		return errUnsolicited
	}
	res, err := c.runCommand(tagStartTLS, "STARTTLS")
	if err != nil {
		return err
	}
	if res.Name != "OK" {
		return fmt.Errorf("%w: %s", errStartTLS, DescribeResponse(res))
	}
	return c.handshakeTLS(cfg)
}

// handshakeTLS starts TLS and forgets what was received before.
func (c *loginConn) handshakeTLS(cfg *tls.Config) error {
	var tlsConn *tls.Conn
	err := c.conn.Upgrade(func(nc net.Conn) net.Conn {
		tlsConn = tls.Client(nc, cfg)
		return tlsConn
	})
	if err != nil {
		return err
	}
	c.caps, c.alerts = imap.Caps{}, nil
	c.tlsConn, c.tlsConfig = tlsConn, cfg
	if err := tlsConn.Handshake(); err != nil { // within the deadline of the login
		err = tlsconf.ExplainError(err, cfg)
		return fmt.Errorf("%w: %w", errTLS, explainTLSError(err, cfg.ServerName))
	}
	return nil
}

// requireCaps requests the capability list if the backend has not sent it.
func (c *loginConn) requireCaps() error {
	if c.caps.IsKnown() {
		return nil
	}
	res, err := c.runCommand(tagCapability, "CAPABILITY")
	if err != nil {
		return err
	}
	c.record(res)
	if res.Name != "OK" || !c.caps.IsKnown() {
		return errCapability
	}
	return nil
}

// authenticate sends ID and the login, in one write where no answer is needed in between. It
// returns the tagged answer to the login. A backend that answers BAD may not support the form,
// whatever it lists, so the next one is tried.
func (c *loginConn) authenticate(creds credentials, client Client) (answer imap.Response, err error) {
	forms, err := creds.listForms(c.caps)
	if err != nil {
		return imap.Response{}, err
	}
	b := c.backend
	pref := &b.passwordForms
	if !creds.token.IsZero() {
		pref = &b.tokenForms
	}
	presented := 0
	for i, f := range pref.orderForms(forms) {
		cmd := &loginCommand{bytes: make([]byte, 0, 512), partEnds: make([]int, 0, 3)}
		switch {
		case i > 0:
			c.loginTag = string(tagLogin[0]+byte(i)) + rand.Text()[:13]
		case c.caps.Has("ID"):
			cmd.idTag, c.id = tagID+c.tagSuffix, client.ForwardedID()
			cmd.bytes = c.cfg.appendID(cmd.bytes, cmd.idTag, client, c.cfg.hopsLeft(client))
		}
		if err := creds.appendLogin(cmd, f, c); err != nil {
			return imap.Response{}, err
		}
		res, sent, err := c.sendLogin(cmd)
		switch {
		case err != nil && i > 0 && !sent:
			pref.recordRejected(f) // the backend has not received it
			return answer, nil     // the backend closed the connection, so its BAD stands
		case err != nil && sent && creds.hasLongToken() && isClosed(err):
			return res, fmt.Errorf("%w: %w", errTokenTooLong, err)
		case err != nil && sent:
			return res, fmt.Errorf("%w: %w", errNoLoginAnswer, err)
		case err != nil:
			return res, err
		case cmd.challenged || res.Name != "BAD" || classifyReply(res).verdict != VerdictUnclear: // not about the form
			switch {
			case i > 0 && res.Name == "OK": // a NO may be about invented credentials
				b.log.Warn("backend lists a form of login that it does not accept; another is used from now on", zap.Stringer("form", f))
				pref.recordAccepted(f, true)
			case i == 0:
				pref.recordAccepted(f, res.Name == "OK")
			case presented > 0 && classifyReply(res).verdict == VerdictNone: // what the earlier BAD was about stays unclear
				return answer, nil
			}
			return res, nil
		}
		if sent {
			presented++
		}
		answer = res
		if presented == maxPresented || !time.Now().Before(c.deadline) {
			break
		}
	}
	pref.recordRejected(forms[0])
	return answer, nil
}

// sendLogin sends a login and reads its tagged answer. The answer to the ID command in front is
// ignored. sent reports whether the credentials, which are in the last part, were sent, also if
// there is an error. From then on the backend has at least AnswerTimeout, even beyond the
// deadline.
func (c *loginConn) sendLogin(cmd *loginCommand) (res imap.Response, sent bool, err error) {
	defer func() { clear(cmd.bytes) }()
	if !isOnlyUntagged(c.conn.Peek()) {
		return res, false, errUnsolicited
	}
	from := 0
	for _, end := range append(cmd.partEnds, len(cmd.bytes)) {
		sent = end == len(cmd.bytes)
		if sent {
			c.presented = true
			deadline := time.Now().Add(c.cfg.AnswerTimeout)
			if deadline.Before(c.deadline) {
				deadline = c.deadline
			}
			c.conn.SetDeadline(deadline)
		}
		if _, err = c.conn.Write(cmd.bytes[from:end]); err != nil {
			return imap.Response{}, sent, err
		}
		if from == 0 && cmd.idTag != "" {
			if _, err = c.readAnswer(cmd.idTag); err != nil {
				return imap.Response{}, sent, err
			}
		}
		if res, err = c.readAnswer(c.loginTag); err != nil || res.Kind == imap.Tagged {
			break
		}
		from = end
	}
	switch {
	case err != nil:
	case !sent && res.Name == "OK":
		err = errUnsolicited
	case res.Kind == imap.Continuation:
		cmd.challenged = true
		res, err = c.finishRefusal(res.Text, cmd.finalResponse)
	}
	return res, sent, err
}

// finishRefusal answers a challenge that explains a refusal, and reads the NO that must follow
// (RFC 7628 §3.2.3). From the challenge it takes only whether the backend could verify the
// token at all. Dovecot 2.4 reports only there that its provider did not answer, and
// AUTHENTICATIONFAILED after it.
func (c *loginConn) finishRefusal(challenge, response string) (imap.Response, error) {
	if response == "" {
		return imap.Response{}, errContinuation
	}
	if _, err := c.conn.Write([]byte(response)); err != nil {
		return imap.Response{}, err
	}
	res, err := c.readAnswer(c.loginTag)
	switch {
	case err == nil && res.Kind == imap.Continuation:
		err = errContinuation
	case err == nil && res.Name == "OK":
		err = errContradiction
	}
	if res.Name == "NO" && isVerificationFailure(challenge) {
		res.Code, res.Text = "UNAVAILABLE", "Tokens cannot be verified now."
	}
	return res, err
}

// refreshCaps obtains the capability list after the login, which differs from the one before.
// It returns the other untagged responses, which are for the client. Sessions share one copy of
// a list.
func (c *loginConn) refreshCaps(ok imap.Response) (untagged []byte, err error) {
	c.caps = imap.Caps{}
	c.record(ok)
	if !c.caps.IsKnown() {
		if untagged, err = c.requestCaps(); err != nil {
			return nil, err
		}
	}
	if last := c.backend.lastCaps.Load(); last != nil && last.String() == c.caps.String() {
		c.caps = *last
		return untagged, nil
	}
	caps := c.caps
	c.backend.lastCaps.Store(&caps)
	return untagged, nil
}

// requestCaps requests the capability list of the logged-in user.
func (c *loginConn) requestCaps() (untagged []byte, err error) {
	tag := tagCapsAfterLogin + c.tagSuffix
	if _, err := c.conn.Write([]byte(tag + " CAPABILITY\r\n")); err != nil {
		return nil, err
	}
	for {
		res, err := c.readResponse()
		switch {
		case err != nil:
			return nil, err
		case res.Kind == imap.Continuation:
			return nil, errContinuation
		case res.Kind == imap.Tagged && res.Tag != tag:
			return nil, errWrongTag
		case res.Kind == imap.Tagged:
			c.record(res)
			if !c.caps.IsKnown() {
				return nil, errCapability
			}
			return untagged, nil
		case res.Name == "CAPABILITY":
			c.record(res)
		case res.Line == nil: // it had a literal
			return nil, errAfterLogin
		default:
			untagged = append(append(untagged, res.Line...), '\r', '\n')
		}
		if err := untaggedError(res); err != nil {
			return nil, err
		}
	}
}

// runCommand sends a command without arguments and reads its answer.
func (c *loginConn) runCommand(letter, name string) (imap.Response, error) {
	tag := letter + c.tagSuffix
	if _, err := c.conn.Write([]byte(tag + " " + name + "\r\n")); err != nil {
		return imap.Response{}, err
	}
	return c.readAnswer(tag)
}

// readAnswer reads up to the answer to the command tag. Only to the login it may be a
// continuation request. Of the untagged responses before it, only ALERTs can be forwarded.
func (c *loginConn) readAnswer(tag string) (imap.Response, error) {
	for {
		res, err := c.readResponse()
		if err != nil {
			return res, err
		}
		switch {
		case res.Kind == imap.Continuation && tag != c.loginTag:
			return res, errContinuation
		case res.Kind == imap.Continuation, res.Kind == imap.Tagged && res.Tag == tag:
			return res, nil
		case res.Kind == imap.Tagged:
			return res, errWrongTag
		}
		if err := untaggedError(res); err != nil {
			return res, err
		}
		c.record(res)
	}
}

// untaggedError returns the error of an untagged response. A PREAUTH session belongs to an
// unknown user, at any time.
func untaggedError(res imap.Response) error {
	switch res.Name {
	case "BYE":
		return fmt.Errorf("%w: %s", errBye, DescribeResponse(res))
	case "PREAUTH":
		return errPreauth
	}
	return nil
}

// record stores a capability list, which may come in three places (RFC 9051 §7.1, §7.2.2), and
// an untagged ALERT, which must be shown to the user (RFC 9051 §7.1).
func (c *loginConn) record(res imap.Response) {
	switch {
	case res.Name == "OK" && res.Code == "CAPABILITY":
		c.caps = imap.ParseCaps(res.Arg)
	case res.Kind != imap.Untagged:
	case res.Name == "CAPABILITY":
		c.caps = imap.ParseCaps(res.Text)
	case res.Code == "ALERT" && len(c.alerts) < maxAlerts:
		if text := sanitizeText(res.Text); text != "" && (res.Name == "OK" || res.Name == "NO" || res.Name == "BAD") {
			c.alerts = append(c.alerts, Alert{res.Name, text})
		}
	}
}

// readResponse reads one response within the budget. Literals are skipped; if there are any,
// Line is nil.
func (c *loginConn) readResponse() (imap.Response, error) {
	var res imap.Response
	for isFirst := true; ; isFirst = false {
		s, err := c.conn.Next()
		switch {
		case errors.Is(err, imap.ErrLineEnding), errors.Is(err, imap.ErrLiteral):
			return res, fmt.Errorf("%w: %w", errProtocol, err)
		case err != nil:
			return res, err
		}
		c.bytesLeft -= len(s.Bytes)
		if c.bytesLeft < 0 || s.Literal.Size > int64(c.bytesLeft) || s.Kind == imap.LinePart {
			return res, errBudget
		}
		if isFirst {
			if res, err = imap.ParseResponse(s.Bytes[:len(s.Bytes)-len("\r\n")]); err != nil {
				return res, fmt.Errorf("%w: %w", errProtocol, err)
			}
		}
		if s.End {
			return res, nil
		}
		res.Line = nil
	}
}
