package fleet

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/sanitize"
)

// Bounds of commands.
const (
	// AnswerTimeout is how long Ask waits for the other gateways, by default. A command that a
	// gateway reads later is not carried out.
	AnswerTimeout = 2 * time.Second

	maxStream        = 10_000      // commands kept in the stream, about
	maxArgs          = 64 << 10    // bytes
	maxRunning       = 8           // operations that run at a time for other gateways
	operationTimeout = time.Minute // of the context of an operation
)

// Codes of answers that carry no result.
const (
	codeUnknown = "unknown" // this version does not understand the command
	codeExpired = "expired" // its deadline had passed
	codeFailed  = "failed"
)

// Operation is a command that gateways carry out.
type Operation struct {
	Name string
	// Run carries it out for an operator named by. args is JSON, as sent. Its error is shown to
	// the operator.
	Run func(ctx context.Context, args json.RawMessage, by string) (answer any, err error)
}

// errNotUnderstood means that the arguments are not those of this version.
var errNotUnderstood = errors.New("this version does not understand the command")

// Operate returns an Operation with typed arguments. Unknown arguments are refused: they may
// restrict what is to be done.
func Operate[Args, Answer any](name string, run func(ctx context.Context, args Args, by string) (Answer, error)) Operation {
	return Operation{name, func(ctx context.Context, text json.RawMessage, by string) (any, error) {
		var args Args
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&args); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotUnderstood, err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, errNotUnderstood
		}
		return run(ctx, args, by)
	}}
}

// command is an entry of the stream.
type command struct {
	ID       string
	Op       string
	Args     json.RawMessage
	By       string
	Deadline time.Time // on the clock of Redis; zero if the command is still to be sent
}

// newCommand returns a command of this gateway.
func newCommand(op string, args any, by string) (command, error) {
	text, err := json.Marshal(args)
	if err == nil && len(text) > maxArgs {
		err = fmt.Errorf("the arguments have more than %d bytes", maxArgs)
	}
	if err != nil {
		return command{}, fmt.Errorf("command %s: %w", op, err)
	}
	return command{ID: rand.Text(), Op: op, Args: text, By: sanitize.Line(by, maxText)}, nil
}

// parseCommand reads an entry of the stream, which may be anything. It returns false for one
// that cannot be answered.
func parseCommand(fields map[string]any) (c command, ok bool) {
	text := func(name string, most int) string {
		s, _ := fields[name].(string)
		if len(s) > most {
			return ""
		}
		return s
	}
	deadline, _ := strconv.ParseInt(text("deadline", 20), 10, 64) // 0, long ago, if it is none
	c = command{
		ID: text("id", maxText), Op: text("op", maxText), Args: json.RawMessage(text("args", maxArgs)),
		By: sanitize.Line(text("by", maxText), maxText), Deadline: time.UnixMilli(min(max(0, deadline), maxTime)),
	}
	return c, isCommandID(c.ID)
}

// isCommandID reports whether id can be part of a key: it has letters, digits and "-" only.
func isCommandID(id string) bool {
	return id != "" && !strings.ContainsFunc(id, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

func (f *Fleet) commandsKey() string { return f.Prefix + "commands" }

// Ask makes all gateways of the fleet carry out an operation, and waits for their answers for
// AnswerTimeout. This gateway carries it out itself, also while Redis is down.
func (f *Fleet) Ask(ctx context.Context, op string, args any, by string) (Reply, error) {
	c, err := newCommand(op, args, by)
	if err != nil {
		return Reply{}, err
	}
	all, err := f.List(ctx)
	others := all[1:]
	reply := Reply{Asked: len(all)}
	if err != nil {
		reply.Err = fmt.Errorf("other gateways could not be asked: %w", err)
	}
	f.seen.add(c.ID) // the reader of the stream must not carry it out too
	isSent := false
	if len(others) > 0 {
		if err := f.send(ctx, c); err != nil {
			reply.Err = fmt.Errorf("other gateways may not have received the command: %w", err)
		} else {
			isSent = true
		}
	}
	waitCtx, cancel := context.WithTimeout(ctx, f.AnswerTimeout)
	defer cancel()
	reply.Answers = []Answer{f.execute(ctx, c)}
	if isSent {
		f.awaitAnswers(waitCtx, c.ID, others, &reply)
	} else {
		reply.addMissing(others)
	}
	return reply, nil
}

// AskSelf makes only this gateway carry out an operation.
func (f *Fleet) AskSelf(ctx context.Context, op string, args any, by string) (Reply, error) {
	c, err := newCommand(op, args, by)
	if err != nil {
		return Reply{}, err
	}
	return Reply{Asked: 1, Answers: []Answer{f.execute(ctx, c)}}, nil
}

// send adds a command to the stream. If it fails, the command may have been added.
func (f *Fleet) send(ctx context.Context, c command) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	err := sendScript.Run(ctx, f.redis, []string{f.commandsKey()}, f.AnswerTimeout.Milliseconds(), maxStream,
		c.ID, c.Op, string(c.Args), c.By).Err()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRedis, err)
	}
	return nil
}

// start carries out a command of another gateway in the background, once. The command must not
// begin later than expires.
func (f *Fleet) start(ctx context.Context, c command, expires time.Time) {
	text, isNew := f.seen.add(c.ID)
	if !isNew && text == nil {
		return // in progress
	}
	select {
	case f.running <- struct{}{}:
	case <-ctx.Done():
		return
	}
	f.wg.Go(func() {
		defer func() { <-f.running }()
		if isNew {
			text = f.answer(ctx, c, expires)
		}
		f.sendAnswer(ctx, c.ID, text)
	})
}

// answer carries out a command and returns the answer as text.
func (f *Fleet) answer(ctx context.Context, c command, expires time.Time) []byte {
	var a Answer
	if time.Now().After(expires) {
		a = f.newAnswer(codeExpired, "the command came too late")
	} else {
		a = f.execute(ctx, c)
	}
	text, err := json.Marshal(a)
	if err != nil || len(text) > maxAnswer {
		text, _ = json.Marshal(f.newAnswer(codeFailed, "the answer is too large")) // strings only
	}
	f.seen.keep(c.ID, text)
	return text
}

func (f *Fleet) newAnswer(code, text string) Answer {
	return Answer{ID: f.ID, Name: f.Name, Version: f.Version, Code: code, Error: sanitize.Line(text, maxError)}
}

// execute carries out a command and returns the answer.
func (f *Fleet) execute(ctx context.Context, c command) (a Answer) {
	defer func() {
		if r := recover(); r != nil {
			f.Log.Error("panic in a command", zap.String("op", c.Op), zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			a = f.newAnswer(codeFailed, "internal error")
		}
	}()
	i := slices.IndexFunc(f.Operations, func(o Operation) bool { return o.Name == c.Op })
	if i < 0 || !json.Valid(c.Args) {
		return f.newAnswer(codeUnknown, errNotUnderstood.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	result, err := f.Operations[i].Run(ctx, c.Args, c.By)
	if err == nil {
		a = f.newAnswer("", "")
		a.Result, err = json.Marshal(result)
	}
	switch {
	case errors.Is(err, errNotUnderstood):
		return f.newAnswer(codeUnknown, err.Error())
	case err != nil:
		return f.newAnswer(codeFailed, err.Error())
	}
	return a
}
