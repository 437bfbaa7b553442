package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"imapgate/internal/plainfile"
	"imapgate/internal/settings"
)

const (
	// maxFileBytes bounds the file to about ten thousand static routes.
	maxFileBytes = 1 << 20
	// maxDepth bounds the nesting, which a recursive parser would follow.
	maxDepth = 200
	// pipeTimeout bounds the wait for a configuration that is read from a pipe.
	pipeTimeout = 10 * time.Second
)

// Load reads the file. The returned Config is complete and valid; an error of type
// *InvalidError has all problems.
func Load(path string) (*Config, error) {
	// O_NONBLOCK and the deadline: the file may be a pipe, such as a shell's <(…),
	// without a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration: %w: name the file with -c FILE", err)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(pipeTimeout)) // a regular file has none
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("configuration: %s is larger than %d bytes", path, maxFileBytes)
	}
	cfg, err := parse(path, text, os.LookupEnv)
	if err == nil {
		cfg.hash = sha256.Sum256(text)
	}
	return cfg, err
}

// parse is Load for the text of a file; env is os.LookupEnv.
func parse(file string, text []byte, env func(string) (string, bool)) (*Config, error) {
	p := &problems{positions: map[string]position{"": {1, 1}}, badKeys: make(map[string]bool)}
	cfg := &Config{file: file, positions: p.positions}
	settings.SetDefaults(reflect.ValueOf(cfg).Elem(), settings.Fields)
	if root := p.parseTree(text); root != nil {
		decoder{p, settings.Fields}.decodeStruct(root, reflect.ValueOf(cfg).Elem(), "")
	}
	if len(p.list) == 0 || len(p.positions) > 1 { // if it is not YAML, all keys would seem to be missing
		cfg.setDerived()
		checker{p, cfg}.checkAll()
		secrets{p, env, &cfg.SecretFiles}.readAll(cfg)
	}
	if err := p.err(file); err != nil {
		return nil, err
	}
	return cfg, nil
}

// parseTree parses the text. It returns nil if the text is empty or not YAML.
func (p *problems) parseTree(text []byte) (root ast.Node) {
	text, err := plainfile.DecodeText(text)
	if err != nil {
		p.add("", "%s", err)
		return nil
	}
	if isTooDeep(text) {
		p.add("", "is nested more than %d deep", maxDepth)
		return nil
	}
	defer func() {
		if recover() != nil { // the parser may panic on invalid input
			p.add("", "invalid YAML")
			root = nil
		}
	}()
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p.addSyntaxError(text, err)
		return nil
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if root != nil {
			p.addAt(positionOf(doc.Body), "", "is a second document; only one is allowed")
			break
		}
		root = doc.Body
	}
	return root
}

// addSyntaxError records the parser's message, without the excerpt of the file.
func (p *problems) addSyntaxError(text []byte, err error) {
	var yamlErr yaml.Error
	if !errors.As(err, &yamlErr) {
		p.add("", "invalid YAML")
		return
	}
	pos := position{1, 1}
	if t := yamlErr.GetToken(); t != nil && t.Position != nil {
		pos = position{t.Position.Line, t.Position.Column}
	}
	if column := findIndentTab(text, pos.line); column > 0 {
		p.addAt(position{pos.line, column}, "", "tabs are not allowed for indentation, use spaces")
		return
	}
	message := quote(yamlErr.GetMessage())
	if strings.HasPrefix(yamlErr.GetMessage(), "value is not allowed in this context") {
		message = "a bracket, a comma or the indentation is wrong, here or before"
	}
	p.addAt(pos, "", "invalid YAML: %s", message)
}

// findIndentTab returns the column of the first tab in the indentation of a line, or
// 0. Most editors do not show the difference, and the parser's messages do not name
// it.
func findIndentTab(text []byte, line int) int {
	for range line - 1 {
		_, text, _ = bytes.Cut(text, []byte("\n"))
	}
	text = text[:len(text)-len(bytes.TrimLeft(text, " \t-?"))]
	return bytes.IndexByte(text, '\t') + 1
}

// isTooDeep reports whether text could be nested too deep by brackets, or by the
// dashes or question marks of one line: the parser's time and stack grow with both.
// Brackets in comments and strings count too, hence the wide bound.
func isTooDeep(text []byte) bool {
	open, marks := 0, 0
	for i, c := range text {
		switch c {
		case '[', '{':
			open++
		case ']', '}':
			open = max(0, open-1)
		case '-', '?': // only before a space; a row of dashes is a comment
		case ' ', '\t':
			if i > 0 && (text[i-1] == '-' || text[i-1] == '?') {
				marks++
			}
		default: // another character, or the next line
			marks = 0
		}
		if open > maxDepth || marks > maxDepth {
			return true
		}
	}
	return false
}

// setDerived sets values that follow from other keys.
func (c *Config) setDerived() {
	if c.Listeners == nil {
		c.Listeners = []Listener{settings.Default[Listener]()}
	}
	for i := range c.Listeners {
		if c.Listeners[i].Name == "" {
			c.Listeners[i].Name = c.Listeners[i].Address
		}
	}
	_, named := c.positions["admin.socket"]
	c.Admin.SocketIsDefault = !named
	for name, b := range c.Backends {
		b.Name = name
		c.Backends[name] = b
	}
}
