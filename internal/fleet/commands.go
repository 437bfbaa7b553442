package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/sanitize"
	"imapgate/internal/sleep"
)

// Bounds of commands and answers.
const (
	// AnswerTimeout is how long Ask waits for the other gateways.
	AnswerTimeout = 2 * time.Second

	maxStream    = 10_000           // commands kept in the stream, about
	answersTTL   = 60 * time.Second // how long answers are kept
	maxArgs      = 64 << 10         // bytes
	maxAnswer    = 4 << 20          // bytes
	maxAnswered  = 10_000           // ids of commands that are remembered
	maxRunning   = 8                // operations that run at a time
	maxBatch     = 100              // commands read at a time
	blockTime    = time.Second      // that a read waits for commands, and the end of a gateway for it
	minPoll      = 3 * time.Millisecond
	maxPoll      = 50 * time.Millisecond
	maxRetryWait = 5 * time.Second // between attempts to read commands
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
	// Run carries it out for an operator named by. args is as sent. Its error is shown to the
	// operator.
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
	From     string    // the gateway that was asked, which has carried it out itself
	Deadline time.Time // on Redis' clock
}

// Answer is what one gateway has answered.
type Answer struct {
	ID      string          `json:"id"` // of the gateway
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Result  json.RawMessage `json:"result,omitempty"`
	Code    string          `json:"code,omitempty"` // "" with a result
	Error   string          `json:"error,omitempty"`
}

// Reply is what the fleet has answered.
type Reply struct {
	Asked   int
	Answers []Answer // this gateway's first
	Missing []string // names of the gateways that have not answered in time
	// Err is why other gateways could not be asked; it wraps ErrRedis.
	Err error
}

// Refused returns the gateways that have answered without a result, each with the reason.
func (r *Reply) Refused() (list []string) {
	for _, a := range r.Answers {
		switch a.Code {
		case "":
		case codeUnknown:
			list = append(list, fmt.Sprintf("gateway %s, version %s, does not understand this command", a.Name, a.Version))
		default:
			list = append(list, fmt.Sprintf("gateway %s: %s", a.Name, a.Error))
		}
	}
	if r.Err != nil {
		list = append(list, fmt.Sprintf("other gateways could not be asked: %v", r.Err))
	}
	return list
}

// Ask makes all gateways of the fleet carry out an operation, and waits for their answers for
// AnswerTimeout. This gateway carries it out itself, also while Redis is down.
func (f *Fleet) Ask(ctx context.Context, op string, args any, by string) (Reply, error) {
	text, err := json.Marshal(args)
	if err != nil {
		return Reply{}, err
	}
	others, err := f.List(ctx)
	others = others[1:]
	c := command{ID: newID(), Op: op, Args: text, By: by, From: f.ID, Deadline: f.redisNow().Add(AnswerTimeout)}
	if err == nil && len(others) > 0 {
		err = f.send(ctx, c)
	}
	own := f.execute(ctx, c)
	reply := Reply{Asked: 1, Answers: []Answer{own}, Err: err}
	if err != nil {
		return reply, nil
	}
	reply.Asked += len(others)
	f.awaitAnswers(ctx, c.ID, others, &reply)
	return reply, nil
}

// AskSelf makes only this gateway carry out an operation.
func (f *Fleet) AskSelf(ctx context.Context, op string, args any, by string) (Reply, error) {
	text, err := json.Marshal(args)
	if err != nil {
		return Reply{}, err
	}
	own := f.execute(ctx, command{ID: newID(), Op: op, Args: text, By: by, From: f.ID})
	return Reply{Asked: 1, Answers: []Answer{own}}, nil
}

func (f *Fleet) commandsKey() string         { return f.Prefix + "commands" }
func (f *Fleet) answersKey(id string) string { return f.Prefix + "answers:" + id }

// send adds a command to the stream.
func (f *Fleet) send(ctx context.Context, c command) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	err := f.redis.XAdd(ctx, &redis.XAddArgs{
		Stream: f.commandsKey(), MaxLen: maxStream, Approx: true,
		Values: []any{"id", c.ID, "op", c.Op, "args", string(c.Args), "by", c.By, "from", c.From, "deadline", c.Deadline.UnixMilli()},
	}).Err()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRedis, err)
	}
	return nil
}

// awaitAnswers adds the answers of other gateways to reply, and the names of those that do not
// answer in time.
func (f *Fleet) awaitAnswers(ctx context.Context, id string, others []Gateway, reply *Reply) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
	defer cancel()
	waiting := make(map[string]string, len(others))
	for _, g := range others {
		waiting[g.ID] = g.Name
	}
	read := int64(0)
	for poll := minPoll; len(waiting) > 0; poll = min(2*poll, maxPoll) {
		if sleep.For(ctx, poll) != nil {
			break
		}
		texts, err := f.redis.LRange(ctx, f.answersKey(id), read, -1).Result()
		if err != nil {
			continue // until the time is over
		}
		read += int64(len(texts))
		for _, text := range texts {
			a, ok := parseAnswer(text)
			if _, isAsked := waiting[a.ID]; ok && isAsked {
				delete(waiting, a.ID)
				reply.Answers = append(reply.Answers, a)
			}
		}
	}
	for _, name := range waiting {
		reply.Missing = append(reply.Missing, name)
	}
	slices.Sort(reply.Missing)
}

// parseAnswer reads an answer, which may be anything.
func parseAnswer(text string) (a Answer, ok bool) {
	if len(text) > maxAnswer+maxArgs || json.Unmarshal([]byte(text), &a) != nil {
		return a, false
	}
	a.Name, a.Version, a.Error = sanitize.Line(a.Name, maxText), sanitize.Line(a.Version, maxText), sanitize.Line(a.Error, maxArgs)
	return a, true
}

// readCommands carries out the commands of the stream until ctx is done.
func (f *Fleet) readCommands(ctx context.Context) {
	position, wait := "", minPoll
	for ctx.Err() == nil {
		var err error
		if position == "" {
			position, err = f.lastCommand(ctx)
		}
		if err == nil {
			position, err = f.readNext(ctx, position)
		}
		if err == nil {
			wait = minPoll
			continue
		}
		wait = min(2*wait, maxRetryWait)
		_ = sleep.For(ctx, wait+rand.N(wait)) // ends with ctx
	}
}

// lastCommand returns the position of the latest command: those before the start are not for
// this gateway.
func (f *Fleet) lastCommand(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	last, err := f.redis.XRevRangeN(ctx, f.commandsKey(), "+", "-", 1).Result()
	switch {
	case err != nil:
		return "", err
	case len(last) == 0:
		return "0", nil
	}
	return last[0].ID, nil
}

// readNext waits for commands after position, and starts them. It returns the position of the
// last one.
func (f *Fleet) readNext(ctx context.Context, position string) (string, error) {
	waitCtx, cancel := context.WithTimeout(ctx, blockTime+redisTimeout)
	defer cancel()
	streams, err := f.redis.XRead(waitCtx, &redis.XReadArgs{Streams: []string{f.commandsKey(), position}, Count: maxBatch, Block: blockTime}).Result()
	if errors.Is(err, redis.Nil) {
		return position, nil
	}
	if err != nil {
		return position, err
	}
	for _, stream := range streams {
		for _, entry := range stream.Messages {
			f.start(ctx, parseCommand(entry.Values))
			position = entry.ID
		}
	}
	return position, nil
}

// parseCommand reads an entry of the stream, which may be anything.
func parseCommand(fields map[string]any) (c command) {
	text := func(name string, most int) string {
		s, _ := fields[name].(string)
		if len(s) > most {
			return ""
		}
		return s
	}
	deadline, _ := strconv.ParseInt(text("deadline", 20), 10, 64) // 0, long ago, if it is none
	return command{
		ID: text("id", maxText), Op: text("op", maxText), Args: json.RawMessage(text("args", maxArgs)),
		By: sanitize.Line(text("by", maxText), maxText), From: text("from", maxText), Deadline: time.UnixMilli(deadline),
	}
}

// start carries out a command of another gateway in the background, once.
func (f *Fleet) start(ctx context.Context, c command) {
	if c.ID == "" || strings.ContainsAny(c.ID, "{}\r\n ") || c.From == f.ID {
		return
	}
	f.mu.Lock()
	isNew := f.seen.add(c.ID)
	f.mu.Unlock()
	if !isNew {
		return
	}
	select {
	case f.running <- struct{}{}:
	case <-ctx.Done():
		return
	}
	f.wg.Go(func() { f.answer(ctx, c) })
}

// answer carries out a command and writes the answer.
func (f *Fleet) answer(ctx context.Context, c command) {
	defer func() { <-f.running }()
	var a Answer
	if f.redisNow().After(c.Deadline) {
		a = f.newAnswer(codeExpired, "the command came too late")
	} else {
		a = f.execute(ctx, c)
	}
	text, err := json.Marshal(a)
	if err != nil || len(text) > maxAnswer {
		a = f.newAnswer(codeFailed, "the answer is too large")
		text, _ = json.Marshal(a)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redisTimeout)
	defer cancel()
	pipe := f.redis.Pipeline()
	pipe.RPush(ctx, f.answersKey(c.ID), text)
	pipe.PExpire(ctx, f.answersKey(c.ID), answersTTL)
	if _, err := pipe.Exec(ctx); err != nil {
		f.Log.Warn("the answer to a command was lost", zap.String("op", sanitize.Line(c.Op, maxText)), zap.Error(err))
	}
}

func (f *Fleet) newAnswer(code, text string) Answer {
	return Answer{ID: f.ID, Name: f.Name, Version: f.Version, Code: code, Error: text}
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
	if i < 0 {
		return f.newAnswer(codeUnknown, errNotUnderstood.Error())
	}
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

// answered remembers the latest commands, so that each is carried out once.
type answered struct {
	ids  map[string]bool
	ring []string // the ids, as old as they are
	next int
}

// add remembers an id, and reports whether it is new.
func (a *answered) add(id string) bool {
	if a.ids == nil {
		a.ids, a.ring = make(map[string]bool), make([]string, maxAnswered)
	}
	if a.ids[id] {
		return false
	}
	delete(a.ids, a.ring[a.next])
	a.ids[id], a.ring[a.next] = true, id
	a.next = (a.next + 1) % maxAnswered
	return true
}
