package imap

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Limits bound one command of a client that has not logged in.
type Limits struct {
	Line     int // bytes of a line with its CRLF
	Tag      int // bytes of a tag
	Literals int // octets of all literals together
	Size     int // bytes of all lines and literals together
	Count    int // literals
	Parens   int // opening parentheses
	Args     int // arguments and parentheses; 0: any number
	Skip     int // bytes of a longer line that are read past, and not kept

	Commands map[string]Limits // for the commands that have others, by name
}

// LongLine bounds a line of the commands that may be long before the login.
const LongLine = 32 << 10

// BeforeLogin are the limits for strangers: those of Dovecot's login process,
// where a stranger has none but ID's one list. Two commands may be longer, whose
// buffer grows only as their bytes arrive: AUTHENTICATE with a token of 16 KB
// (identity.MaxToken), which base64 makes 22 KB, and ID with all of the 30 fields
// of 30 octets and values of 1,024 that RFC 2971 §3.3 allows, quoted or as literals.
// It never changes.
var BeforeLogin = Limits{
	Line: 8192, Tag: 126, Literals: 8192, Size: 16 << 10, Count: 4, Parens: 1, Args: maxArgs,
	Commands: map[string]Limits{
		"AUTHENTICATE": LongResponse,
		"ID":           {Line: LongLine, Tag: 126, Literals: LongLine, Size: LongLine, Count: 60, Parens: 1, Args: 64, Skip: skipped},
	},
}

// LongResponse are the limits of AUTHENTICATE, and of a response that brings a token.
var LongResponse = Limits{Line: LongLine, Tag: 126, Literals: 8192, Size: LongLine, Count: 4, Parens: 1, Args: maxArgs, Skip: skipped}

// maxArgs is more than any command has before the login but ID.
const maxArgs = 16

// skipped is how much more is read past of a line that is too long, so that the
// command can be answered: several times what any provider issues as a token.
const skipped = 64 << 10

// ErrTooBig is returned for a synchronising literal over the limits. The client
// has not been asked for it and must not send it: reading may go on.
var ErrTooBig = errors.New("literal is larger than the limit")

// ErrLineSkipped is returned for a line over the limits that was read past. Its
// command, or response, has not been read; reading may go on behind it.
var ErrLineSkipped = errors.New("line is longer than the limit and was read past")

// ErrLost is returned when octets are on their way that cannot be told from
// commands: reading must not go on.
var ErrLost = errors.New("unwanted literal octets follow")

// SyntaxError is a command that is not one. Reading may go on behind it.
type SyntaxError struct {
	Tag  string // "" when the line has no valid tag; never echo anything else
	Text string // constant, safe to send
}

func (e *SyntaxError) Error() string { return "syntax: " + e.Text }

// TokenKind says how a token was written.
type TokenKind uint8

// The kinds of a Token.
const (
	Atom TokenKind = iota
	Quoted
	LiteralString
	Open
	Close
)

// Token is one argument of a command, or a parenthesis.
type Token struct {
	Kind TokenKind
	Text string
}

// IsString says whether the token can stand for an astring or nstring.
func (t Token) IsString() bool { return t.Kind <= LiteralString }

// Command is one command of a client, read whole.
type Command struct {
	Tag  string
	Name string // upper case
	Args []Token
}

// ReadCommand reads one command within lim. Where the client waits with a
// literal, proceed is called to send the continuation request.
//
// Errors: *SyntaxError, ErrTooBig and ErrLineSkipped leave the stream at the next command;
// ErrLost, ErrLineTooLong and those of the source and of proceed do not. The
// command is returned with an error as far as it was read, for its tag.
func (r *Reader) ReadCommand(lim Limits, proceed func() error) (Command, error) {
	if r.Buffered() == 0 && len(r.buf) > lim.Line { // the buffer of a long command is not for idling
		r.Rest()
	}
	p := parser{lim: lim}
	for {
		line, err := r.commandLine(&p)
		switch {
		case errors.Is(err, ErrLineEnding):
			err = p.split(line)
			return p.cmd, err
		case errors.Is(err, ErrLineSkipped):
			return p.cmd, p.recoverable(err, line)
		case err != nil:
			return p.cmd, err
		}
		lit, err := p.line(line)
		if err != nil {
			return p.cmd, p.recoverable(err, line)
		}
		if lit.Size < 0 {
			return p.cmd, p.end()
		}
		if !lit.NonSync {
			if err := proceed(); err != nil {
				return p.cmd, err
			}
		}
		octets, err := r.octets(lit.Size)
		if err != nil {
			return p.cmd, err
		}
		p.cmd.Args = append(p.cmd.Args, Token{LiteralString, octets})
	}
}

// octets reads a literal. Memory is taken as it comes.
func (r *Reader) octets(size int64) (string, error) {
	var b []byte
	for left := size; left > 0; left = size - int64(len(b)) {
		b = append(b, make([]byte, min(left, 4<<10))...)
		if err := r.ReadFull(b[size-left:]); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// commandLine reads a line of the command. A first line that is too long for other
// commands is looked at for its name.
func (r *Reader) commandLine(p *parser) ([]byte, error) {
	if !p.begun {
		line, err := r.ReadLine(p.lim.Line)
		if !errors.Is(err, ErrLineTooLong) {
			return line, err
		}
		p.look(r.Peek())
	}
	return r.ReadOrSkipLine(min(p.lim.Line, p.lim.Size-p.lines-int(p.size)), p.lim.Skip) // size is within Literals
}

// parser reads one command, line by line.
type parser struct {
	lim      Limits
	cmd      Command
	begun    bool  // tag and name are read
	lines    int   // bytes of lines so far
	literals int   // so far
	size     int64 // octets of them
	parens   int   // opened so far
	depth    int   // and not closed
}

func (p *parser) bad(text string) error { return &SyntaxError{Tag: p.cmd.Tag, Text: text} }

// recoverable decides whether a faulty line leaves the stream in step: not when
// it announces octets that come unasked.
func (p *parser) recoverable(err error, line []byte) error {
	if strings.HasSuffix(string(line), "+}") {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

// split refuses a line with an LF inside, by the tag that it begins with. To one who ends
// lines there, what follows a brace would be octets.
func (p *parser) split(line []byte) error {
	if first, _, _ := bytes.Cut(line, []byte("\n")); !p.begun {
		_, _ = p.head(bytes.TrimSuffix(first, []byte("\r"))) // which may have no valid tag
	}
	err := p.bad("Lines end in CRLF.")
	for piece := range bytes.Lines(line) {
		if bytes.HasSuffix(bytes.TrimRight(piece, "\r\n"), []byte("}")) {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
	return err
}

// line reads a line of the command; the literal it ends in is returned, within
// the limits, with Size -1 for none.
func (p *parser) line(line []byte) (Literal, error) {
	p.lines += len(line) + len("\r\n")
	rest, err := p.head(line)
	for err == nil && len(rest) > 0 {
		if lit := rest[0]; lit == '{' || lit == '~' && len(rest) > 1 && rest[1] == '{' {
			return p.literal(rest)
		}
		rest, err = p.token(rest)
	}
	return none, err
}

// head reads tag and name off the command's first line.
func (p *parser) head(line []byte) ([]byte, error) {
	if p.begun {
		return p.between(line)
	}
	p.begun = true
	tag, rest, _ := strings.Cut(string(line), " ")
	if len(tag) > p.lim.Tag || !validTag([]byte(tag)) {
		return nil, p.bad("Invalid tag.")
	}
	p.cmd.Tag = strings.Clone(tag) // or it would keep the whole line
	name, _, more := strings.Cut(rest, " ")
	if name == "" || strings.Trim(strings.ToUpper(name), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-=") != "" {
		return nil, p.bad("Invalid command.")
	}
	p.cmd.Name = strings.ToUpper(name)
	if own, ok := p.lim.Commands[p.cmd.Name]; ok {
		p.lim = own
	}
	if !more {
		return nil, nil
	}
	args := line[len(tag)+1+len(name)+1:]
	if len(args) == 0 {
		return nil, p.bad("Argument missing.")
	}
	return args, nil
}

// look finds tag, name and limits in the beginning of a first line that is yet to
// come whole.
func (p *parser) look(beginning []byte) {
	const longest = len(" AUTHENTICATE ")
	if _, err := p.head(beginning[:min(len(beginning), p.lim.Tag+longest)]); err != nil {
		p.cmd.Name = ""
	}
	p.begun = false
}

// between reads what may stand behind a literal: nothing, a closing
// parenthesis, or a space and the next argument.
func (p *parser) between(line []byte) ([]byte, error) {
	if len(line) == 0 || line[0] == ')' {
		return line, nil
	}
	if line[0] != ' ' || len(line) == 1 {
		return nil, p.bad("A literal is followed by a space or the end.")
	}
	return line[1:], nil
}

func (p *parser) literal(rest []byte) (Literal, error) {
	// The braces must be the whole token, and end the line.
	if i := strings.IndexByte(string(rest), '}'); i != len(rest)-1 || strings.Count(string(rest), "{") != 1 {
		return none, p.bad("Malformed literal.")
	}
	lit, err := announced(rest)
	if err != nil || lit.Size < 0 {
		return none, p.bad("Malformed literal.")
	}
	if err := p.room(); err != nil {
		return none, err
	}
	p.literals++
	if p.literals > p.lim.Count || lit.Size > int64(min(p.lim.Literals, p.lim.Size-p.lines))-p.size {
		return none, ErrTooBig
	}
	p.size += lit.Size
	return lit, nil
}

// room is an error where no argument more may come.
func (p *parser) room() error {
	if p.lim.Args > 0 && len(p.cmd.Args) >= p.lim.Args {
		return p.bad("Too many arguments.")
	}
	return nil
}

func (p *parser) add(t Token) error {
	if err := p.room(); err != nil {
		return err
	}
	p.cmd.Args = append(p.cmd.Args, t)
	return nil
}

// token reads one token and what separates it from the next.
func (p *parser) token(b []byte) ([]byte, error) {
	switch b[0] {
	case '(':
		p.parens, p.depth = p.parens+1, p.depth+1
		if p.parens > p.lim.Parens {
			return nil, p.bad("Too many parentheses.")
		}
		return b[1:], p.add(Token{Open, "("})
	case ')':
		if p.depth--; p.depth < 0 {
			return nil, p.bad("Unbalanced parentheses.")
		}
		if err := p.add(Token{Close, ")"}); err != nil {
			return nil, err
		}
		return p.separated(b[1:])
	case '"':
		return p.quoted(b[1:])
	}
	n := 0
	for n < len(b) && atomChar(b[n]) {
		n++
	}
	if n == 0 {
		return nil, p.bad("Unexpected character.")
	}
	if err := p.add(Token{Atom, string(b[:n])}); err != nil {
		return nil, err
	}
	return p.separated(b[n:])
}

func (p *parser) quoted(b []byte) ([]byte, error) {
	var text strings.Builder
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			if err := p.add(Token{Quoted, text.String()}); err != nil {
				return nil, err
			}
			return p.separated(b[i+1:])
		case '\\':
			// quoted-specials alone may be escaped (RFC 9051 §9)
			if i++; i == len(b) || b[i] != '"' && b[i] != '\\' {
				return nil, p.bad("Invalid escape in a quoted string.")
			}
			text.WriteByte(b[i])
		case 0, '\r':
			return nil, p.bad("Invalid character in a quoted string.")
		default:
			text.WriteByte(c)
		}
	}
	return nil, p.bad("Unterminated quoted string.")
}

// separated reads the one space between two arguments.
func (p *parser) separated(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] == ')' {
		return b, nil
	}
	if b[0] != ' ' || len(b) == 1 {
		return nil, p.bad("Arguments are separated by one space.")
	}
	return b[1:], nil
}

func (p *parser) end() error {
	if p.depth != 0 {
		return p.bad("Unbalanced parentheses.")
	}
	return nil
}

// atomChar is ASTRING-CHAR with what base64 (=), a flag (\) or a pattern (* %)
// needs; a command that minds looks itself.
func atomChar(c byte) bool {
	return c > 0x20 && c < 0x7f && c != '(' && c != ')' && c != '{' && c != '"'
}

// validTag is RFC 9051's tag: ASTRING-CHAR except +.
func validTag(tag []byte) bool {
	for _, c := range tag {
		if !atomChar(c) || c == '+' || c == '*' || c == '%' || c == '\\' {
			return false
		}
	}
	return len(tag) > 0
}
