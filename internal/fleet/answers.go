package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/sanitize"
	"imapgate/internal/sleep"
)

// Bounds of answers.
const (
	answersTTL = 60 * time.Second // how long answers are kept
	maxAnswer  = 4 << 20          // bytes; a page of 1,000 sessions is the largest
	maxError   = 1 << 10          // bytes of the text of an error
	// maxRead bounds the answers to one command that Ask reads, and answerBatch those it reads
	// at a time.
	maxRead     = 2 * maxGateways
	answerBatch = 16
	// minPoll and maxPoll bound the pause between two reads of answers. It doubles.
	minPoll = 3 * time.Millisecond
	maxPoll = 50 * time.Millisecond

	maxAnswered   = 10_000   // ids of commands that are remembered
	maxKept       = 256      // answers that are remembered
	maxKeptAnswer = 16 << 10 // bytes of an answer that is remembered
)

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
	// Err is why other gateways could not be asked, or not be heard; it wraps ErrRedis.
	Err error
}

// Refused returns the gateways that have answered without a result, each with the reason, and
// why others could not be asked.
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
		list = append(list, r.Err.Error())
	}
	return list
}

// addMissing records that these gateways have not answered.
func (r *Reply) addMissing(gateways []Gateway) {
	for _, g := range gateways {
		r.Missing = append(r.Missing, g.Name)
	}
	slices.Sort(r.Missing)
}

func (f *Fleet) answersKey(id string) string { return f.Prefix + "answers:" + id }

// sendAnswer writes an answer. It tries again for as long as it can be waited for.
func (f *Fleet) sendAnswer(ctx context.Context, id string, text []byte) {
	tryCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(f.AnswerTimeout, redisTimeout))
	defer cancel()
	for wait := minPoll; ; wait = min(2*wait, maxPoll) {
		err := answerScript.Run(tryCtx, f.redis, []string{f.answersKey(id)}, answersTTL.Milliseconds(), text).Err()
		if err == nil {
			return
		}
		if ctx.Err() != nil || sleep.For(tryCtx, wait) != nil {
			f.Log.Warn("the answer to a command was lost", zap.String("command", id), zap.Error(err))
			return
		}
	}
}

// awaitAnswers adds the answers of other gateways to reply, and the names of those that have not
// answered when ctx ends. It reads at least once.
func (f *Fleet) awaitAnswers(ctx context.Context, id string, others []Gateway, reply *Reply) {
	waiting := slices.Clone(others)
	read := int64(0)
	var failure error
	hasRead := false
	for poll := minPoll; len(waiting) > 0 && read < maxRead; poll = min(2*poll, maxPoll) {
		texts, err := f.readAnswers(ctx, id, read)
		hasRead, failure = hasRead || err == nil, err
		read += int64(len(texts))
		for _, text := range texts {
			a, ok := parseAnswer(text)
			i := slices.IndexFunc(waiting, func(g Gateway) bool { return g.ID == a.ID })
			if ok && i >= 0 {
				waiting = slices.Delete(waiting, i, i+1)
				reply.Answers = append(reply.Answers, a)
			}
		}
		if len(texts) < answerBatch && len(waiting) > 0 && sleep.For(ctx, poll) != nil {
			break
		}
	}
	if !hasRead {
		reply.Err = fmt.Errorf("answers of other gateways could not be read: %w: %w", ErrRedis, failure)
	}
	reply.addMissing(waiting)
}

// readAnswers returns the answers to a command from a position on. The end of ctx does not
// interrupt it: what has been answered in time counts.
func (f *Fleet) readAnswers(ctx context.Context, id string, from int64) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitTimeout)
	defer cancel()
	return f.redis.LRange(ctx, f.answersKey(id), from, from+answerBatch-1).Result()
}

// parseAnswer reads an answer, which may be anything.
func parseAnswer(text string) (a Answer, ok bool) {
	if len(text) > maxAnswer || json.Unmarshal([]byte(text), &a) != nil {
		return a, false
	}
	a.Name, a.Version, a.Error = sanitize.Line(a.Name, maxText), sanitize.Line(a.Version, maxText), sanitize.Line(a.Error, maxError)
	switch a.Code {
	case "":
		return a, len(a.Result) > 0
	case codeUnknown, codeExpired, codeFailed:
	default: // of a later version
		a.Code = codeFailed
	}
	a.Result = nil
	return a, true
}

// answered remembers the latest commands, so that each is carried out once, and the answers of
// the last ones. It is safe for concurrent use.
type answered struct {
	mu    sync.Mutex
	texts map[string][]byte // Guarded by mu. By command; nil while there is no answer. At most maxAnswered.
	ids   []string          // Guarded by mu. The commands, a ring.
	kept  []string          // Guarded by mu. Those with answers, a ring.
	next  int               // Guarded by mu. In ids.
	last  int               // Guarded by mu. In kept.
}

func newAnswered() answered {
	return answered{texts: make(map[string][]byte), ids: make([]string, maxAnswered), kept: make([]string, maxKept)}
}

// add remembers a command, and reports whether it is new. If not, it returns the answer, which
// is nil if there is none yet or no longer.
func (a *answered) add(id string) (text []byte, isNew bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if text, isKnown := a.texts[id]; isKnown {
		return text, false
	}
	delete(a.texts, a.ids[a.next])
	a.texts[id], a.ids[a.next] = nil, id
	a.next = (a.next + 1) % maxAnswered
	return nil, true
}

// keep remembers the answer to a command.
func (a *answered) keep(id string, text []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, isKnown := a.texts[id]; !isKnown || len(text) > maxKeptAnswer {
		return
	}
	if oldest := a.kept[a.last]; oldest != "" {
		if _, isKnown := a.texts[oldest]; isKnown {
			a.texts[oldest] = nil
		}
	}
	a.texts[id], a.kept[a.last] = text, id
	a.last = (a.last + 1) % maxKept
}
