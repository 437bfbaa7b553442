package imap

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Limits bound one command before login.
type Limits struct {
	Line         int // bytes of a line with its CRLF
	Tag          int // bytes of a tag
	LiteralBytes int // octets of all literals together
	Size         int // bytes of all lines and literals together
	LiteralCount int // literals
	Parens       int // opening parentheses
	Args         int // arguments and parentheses; 0: no limit
	SkipBytes    int // bytes of a longer line that are skipped

	Commands map[string]Limits // limits of specific commands, by name
}

// MaxLongLine bounds, in bytes, a line of the commands that may be long before login.
const MaxLongLine = 32 << 10

// PreauthLimits are the limits before login: those of Dovecot's login process, which allows no
// parenthesized list but that of ID. Two commands may be longer; their buffer grows only as
// bytes arrive. AUTHENTICATE may have a token of 16 KB (identity.MaxToken), which is 22 KB in
// base64. ID may have the 30 fields of 30 octets and values of 1,024 that RFC 2971 §3.3 allows,
// quoted or as literals. Constant.
var PreauthLimits = Limits{
	Line: 8192, Tag: 126, LiteralBytes: 8192, Size: 16 << 10, LiteralCount: 4, Parens: 1, Args: maxArgs,
	Commands: map[string]Limits{
		"AUTHENTICATE": AuthenticateLimits,
		"ID":           {Line: MaxLongLine, Tag: 126, LiteralBytes: MaxLongLine, Size: MaxLongLine, LiteralCount: 60, Parens: 1, Args: 64, SkipBytes: maxSkip},
	},
}

// AuthenticateLimits are the limits of AUTHENTICATE and of a SASL response with a token.
var AuthenticateLimits = Limits{Line: MaxLongLine, Tag: 126, LiteralBytes: 8192, Size: MaxLongLine, LiteralCount: 4, Parens: 1, Args: maxArgs, SkipBytes: maxSkip}

// maxArgs exceeds the arguments of every command before login except ID.
const maxArgs = 16

// maxSkip is how many bytes of a line over the limit are skipped, so that the command can be
// answered. It is several times the size of any provider's tokens.
const maxSkip = 64 << 10

// ErrLiteralTooBig is returned for a synchronising literal over the limits. No continuation
// request was sent, so the client must not send the literal: reading may continue.
var ErrLiteralTooBig = errors.New("literal is larger than the limit")

// ErrLineSkipped is returned for a line over the limits that was skipped. Its command or
// response was not read; reading may continue after it.
var ErrLineSkipped = errors.New("line is longer than the limit and was skipped")

// ErrDesynced is returned when octets follow that cannot be distinguished from commands:
// reading must not continue.
var ErrDesynced = errors.New("unwanted literal octets follow")

// SyntaxError is a malformed command. Reading may continue after it.
type SyntaxError struct {
	Tag  string // "" when the line has no valid tag; never echo anything else
	Text string // constant, safe to send
}

func (e *SyntaxError) Error() string { return "syntax: " + e.Text }

// TokenKind is the syntax of a token.
type TokenKind uint8

// The values of TokenKind.
const (
	Atom TokenKind = iota
	QuotedString
	LiteralString
	OpenParen
	CloseParen
)

// Token is one argument of a command, or a parenthesis.
type Token struct {
	Kind TokenKind
	Text string
}

// IsString reports whether the token can be an astring or nstring.
func (t Token) IsString() bool { return t.Kind <= LiteralString }

// Command is one complete command of a client.
type Command struct {
	Tag  string
	Name string // upper case
	Args []Token
}

// ReadCommand reads one command within limits. It calls sendContinuation when the client waits
// to send a literal.
//
// After *SyntaxError, ErrLiteralTooBig and ErrLineSkipped the stream is at the next command.
// After ErrDesynced, ErrLineTooLong and errors of the source or of sendContinuation it is not.
// On error the command is returned as far as it was read, for its tag.
func (r *Reader) ReadCommand(limits Limits, sendContinuation func() error) (Command, error) {
	if r.Buffered() == 0 && len(r.buf) > limits.Line { // do not keep the buffer of a long command while idle
		r.TakeBuffered()
	}
	p := parser{limits: limits}
	for {
		line, err := r.readCommandLine(&p)
		switch {
		case errors.Is(err, ErrLineEnding):
			err = p.rejectBareLF(line)
			return p.cmd, err
		case errors.Is(err, ErrLineSkipped):
			return p.cmd, wrapIfDesynced(err, line)
		case err != nil:
			return p.cmd, err
		}
		lit, err := p.parseLine(line)
		switch {
		case err != nil:
			return p.cmd, wrapIfDesynced(err, line)
		case lit.Size < 0 && p.depth != 0:
			return p.cmd, p.syntaxError("Unbalanced parentheses.")
		case lit.Size < 0:
			return p.cmd, nil
		}
		if !lit.NonSync {
			if err := sendContinuation(); err != nil {
				return p.cmd, err
			}
		}
		octets, err := r.readLiteral(lit.Size)
		if err != nil {
			return p.cmd, err
		}
		p.cmd.Args = append(p.cmd.Args, Token{LiteralString, octets})
	}
}

// readLiteral reads a literal. It allocates memory only as octets arrive.
func (r *Reader) readLiteral(size int64) (string, error) {
	var b []byte
	for left := size; left > 0; left = size - int64(len(b)) {
		b = append(b, make([]byte, min(left, 4<<10))...)
		if err := r.ReadFull(b[size-left:]); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// readCommandLine reads a line of the command. If a first line is over the general limit, it
// peeks at the name for that command's own limits.
func (r *Reader) readCommandLine(p *parser) ([]byte, error) {
	if !p.headRead {
		line, err := r.ReadLine(p.limits.Line)
		if !errors.Is(err, ErrLineTooLong) {
			return line, err
		}
		p.peekHead(r.Peek())
	}
	return r.ReadOrSkipLine(min(p.limits.Line, p.limits.Size-p.lineBytes-int(p.literalBytes)), p.limits.SkipBytes) // literalBytes is within LiteralBytes
}

// parser parses one command, line by line.
type parser struct {
	limits       Limits
	cmd          Command
	headRead     bool  // tag and name were parsed
	lineBytes    int   // bytes of lines so far
	literalCount int   // literals so far
	literalBytes int64 // octets of all literals so far
	parenCount   int   // opening parentheses so far
	depth        int   // open parentheses
}

func (p *parser) syntaxError(text string) error { return &SyntaxError{Tag: p.cmd.Tag, Text: text} }

// wrapIfDesynced adds ErrDesynced to the error of a line that announces a non-synchronising
// literal, whose octets follow.
func wrapIfDesynced(err error, line []byte) error {
	if strings.HasSuffix(string(line), "+}") {
		return fmt.Errorf("%w: %w", ErrDesynced, err)
	}
	return err
}

// rejectBareLF returns the error for a line with an LF inside, with the tag at its start. A
// client that ends lines with LF would send the octets of a literal after a closing brace: then
// the error is ErrDesynced.
func (p *parser) rejectBareLF(line []byte) error {
	if first, _, _ := bytes.Cut(line, []byte("\n")); !p.headRead {
		_, _ = p.parseHead(bytes.TrimSuffix(first, []byte("\r"))) // the line may have no valid tag
	}
	err := p.syntaxError("Lines end in CRLF.")
	for piece := range bytes.Lines(line) {
		if bytes.HasSuffix(bytes.TrimRight(piece, "\r\n"), []byte("}")) {
			return fmt.Errorf("%w: %w", ErrDesynced, err)
		}
	}
	return err
}

// parseLine parses a line of the command. It returns the literal that the line announces,
// verified against the limits, or Size -1.
func (p *parser) parseLine(line []byte) (Literal, error) {
	p.lineBytes += len(line) + len("\r\n")
	rest, err := p.parseHead(line)
	for err == nil && len(rest) > 0 {
		if lit := rest[0]; lit == '{' || lit == '~' && len(rest) > 1 && rest[1] == '{' {
			return p.parseLiteral(rest)
		}
		var token Token
		if token, rest, err = p.parseToken(rest); err == nil {
			err = p.checkArgCount()
		}
		if err != nil {
			break
		}
		p.cmd.Args = append(p.cmd.Args, token)
		if token.Kind != OpenParen {
			rest, err = p.skipSeparator(rest, "Arguments are separated by one space.")
		}
	}
	return noLiteral, err
}

// parseHead parses tag and name of the command's first line and returns the rest.
func (p *parser) parseHead(line []byte) ([]byte, error) {
	if p.headRead {
		return p.skipSeparator(line, "A literal is followed by a space or the end.")
	}
	p.headRead = true
	tag, rest, _ := strings.Cut(string(line), " ")
	if len(tag) > p.limits.Tag || !isValidTag([]byte(tag)) {
		return nil, p.syntaxError("Invalid tag.")
	}
	p.cmd.Tag = strings.Clone(tag) // so that it does not keep the whole line
	name, _, hasArgs := strings.Cut(rest, " ")
	if name == "" || strings.Trim(strings.ToUpper(name), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-=") != "" {
		return nil, p.syntaxError("Invalid command.")
	}
	p.cmd.Name = strings.ToUpper(name)
	if limits, ok := p.limits.Commands[p.cmd.Name]; ok {
		p.limits = limits
	}
	if !hasArgs {
		return nil, nil
	}
	args := line[len(tag)+1+len(name)+1:]
	if len(args) == 0 {
		return nil, p.syntaxError("Argument missing.")
	}
	return args, nil
}

// peekHead parses tag, name and limits from the beginning of a first line that is still
// incomplete.
func (p *parser) peekHead(prefix []byte) {
	const longestName = len(" AUTHENTICATE ")
	if _, err := p.parseHead(prefix[:min(len(prefix), p.limits.Tag+longestName)]); err != nil {
		p.cmd.Name = ""
	}
	p.headRead = false
}

func (p *parser) parseLiteral(rest []byte) (Literal, error) {
	// The braces must be the whole token, and end the line.
	if i := strings.IndexByte(string(rest), '}'); i != len(rest)-1 || strings.Count(string(rest), "{") != 1 {
		return noLiteral, p.syntaxError("Malformed literal.")
	}
	lit, err := parseAnnouncement(rest)
	if err != nil || lit.Size < 0 {
		return noLiteral, p.syntaxError("Malformed literal.")
	}
	if err := p.checkArgCount(); err != nil {
		return noLiteral, err
	}
	p.literalCount++
	if p.literalCount > p.limits.LiteralCount || lit.Size > int64(min(p.limits.LiteralBytes, p.limits.Size-p.lineBytes))-p.literalBytes {
		return noLiteral, ErrLiteralTooBig
	}
	p.literalBytes += lit.Size
	return lit, nil
}

// checkArgCount returns an error if no more arguments are allowed.
func (p *parser) checkArgCount() error {
	if p.limits.Args > 0 && len(p.cmd.Args) >= p.limits.Args {
		return p.syntaxError("Too many arguments.")
	}
	return nil
}

// parseToken parses one token and returns what follows it.
func (p *parser) parseToken(b []byte) (t Token, rest []byte, err error) {
	switch b[0] {
	case '(':
		p.parenCount, p.depth = p.parenCount+1, p.depth+1
		if p.parenCount > p.limits.Parens {
			return Token{}, nil, p.syntaxError("Too many parentheses.")
		}
		return Token{OpenParen, "("}, b[1:], nil
	case ')':
		if p.depth--; p.depth < 0 {
			return Token{}, nil, p.syntaxError("Unbalanced parentheses.")
		}
		return Token{CloseParen, ")"}, b[1:], nil
	case '"':
		return p.parseQuoted(b[1:])
	}
	n := 0
	for n < len(b) && isAtomChar(b[n]) {
		n++
	}
	if n == 0 {
		return Token{}, nil, p.syntaxError("Unexpected character.")
	}
	return Token{Atom, string(b[:n])}, b[n:], nil
}

func (p *parser) parseQuoted(b []byte) (t Token, rest []byte, err error) {
	var text strings.Builder
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			return Token{QuotedString, text.String()}, b[i+1:], nil
		case '\\':
			// quoted-specials alone may be escaped (RFC 9051 §9)
			if i++; i == len(b) || b[i] != '"' && b[i] != '\\' {
				return Token{}, nil, p.syntaxError("Invalid escape in a quoted string.")
			}
			text.WriteByte(b[i])
		case 0, '\r':
			return Token{}, nil, p.syntaxError("Invalid character in a quoted string.")
		default:
			text.WriteByte(c)
		}
	}
	return Token{}, nil, p.syntaxError("Unterminated quoted string.")
}

// skipSeparator skips the one space between two arguments. problem is the error of another
// separator.
func (p *parser) skipSeparator(b []byte, problem string) ([]byte, error) {
	if len(b) == 0 || b[0] == ')' {
		return b, nil
	}
	if b[0] != ' ' || len(b) == 1 {
		return nil, p.syntaxError(problem)
	}
	return b[1:], nil
}

// isAtomChar reports whether c is ASTRING-CHAR, or needed by base64 (=), a flag (\) or a
// pattern (* %). A stricter command verifies its arguments itself.
func isAtomChar(c byte) bool {
	return c > 0x20 && c < 0x7f && c != '(' && c != ')' && c != '{' && c != '"'
}

// isValidTag verifies RFC 9051's tag: ASTRING-CHAR except +.
func isValidTag(tag []byte) bool {
	for _, c := range tag {
		if !isAtomChar(c) || c == '+' || c == '*' || c == '%' || c == '\\' {
			return false
		}
	}
	return len(tag) > 0
}

// The gateway's own answers to ID (RFC 2971).
const (
	IDResponse = `* ID ("name" "imapgate")`
	IDDone     = "OK ID completed."
	IDRejected = "BAD ID takes a list of at most 30 pairs of strings, or NIL."
)

// Bounds of ID (RFC 2971 §3.3).
const (
	MaxIDPairs = 30
	MaxIDField = 30   // bytes
	maxIDValue = 1024 // bytes
)

// ParseID parses the arguments of ID: "(" string SP nstring … ")" or NIL. It returns the fields
// and values in order, without those whose value is NIL. ok is false for anything else, and
// beyond the bounds.
func ParseID(args []Token) (pairs [][2]string, ok bool) {
	if len(args) == 1 && args[0].isNil() {
		return nil, true
	}
	n := len(args)
	if n < 2 || n%2 != 0 || n > 2+2*MaxIDPairs || args[0].Kind != OpenParen || args[n-1].Kind != CloseParen {
		return nil, false
	}
	for i := 1; i < n-1; i += 2 {
		field, value := args[i], args[i+1]
		if !field.IsString() || !value.IsString() || len(field.Text) > MaxIDField || len(value.Text) > maxIDValue {
			return nil, false
		}
		if !value.isNil() {
			pairs = append(pairs, [2]string{field.Text, value.Text})
		}
	}
	return pairs, true
}

// ParseIDCommand is ParseID for a complete command, with its literals and CRLF.
func ParseIDCommand(raw []byte) (pairs [][2]string, ok bool) {
	r := NewReader(bytes.NewReader(raw), Commands, len(raw))
	cmd, err := r.ReadCommand(PreauthLimits, func() error { return nil })
	if err != nil {
		return nil, false
	}
	return ParseID(cmd.Args)
}

func (t Token) isNil() bool { return t.Kind == Atom && strings.EqualFold(t.Text, "NIL") }
