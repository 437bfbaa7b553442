package mux

import (
	"slices"
	"sync/atomic"

	"imapgate/internal/event"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/mailbox"
)

// statusBoard has the latest status of a session, for operators. Its session publishes it each
// time before it waits.
type statusBoard struct {
	word    atomic.Uint32                   // a statusWord
	mailbox atomic.Pointer[mailbox.Mailbox] // only its name is read
}

// statusWord is a relay.Status without the mailbox: positions in the lists below.
type statusWord uint32

// The lists of statusWord. Constant.
var (
	activities = []event.Activity{event.Active, event.Resting, event.Waiting}
	survivals  = []event.Survival{event.SurvivalYes, event.SurvivalPause, event.SurvivalNo}
	obstacles  = []event.Obstacle{"", event.ObstaclePinned, event.ObstacleReuse, event.ObstacleAppend, event.ObstacleWrite, event.ObstacleResponse, event.ObstacleView}
)

func newStatusWord(a event.Activity, s event.Survival, o event.Obstacle) statusWord {
	return statusWord(slices.Index(activities, a) | slices.Index(survivals, s)<<4 | slices.Index(obstacles, o)<<8)
}

// Status implements relay.Reporter.
func (s *session) Status() relay.Status {
	w := s.board.word.Load()
	status := relay.Status{Activity: activities[w&15], Survival: survivals[w>>4&15], Obstacle: obstacles[w>>8]}
	if m := s.board.mailbox.Load(); m != nil {
		status.Mailbox = m.Name()
	}
	return status
}

// publishStatus publishes what the session is doing.
func (x *exchange) publishStatus() { x.publish(x.statusWord()) }

func (x *exchange) publish(w statusWord) {
	if w != x.published {
		x.published = w
		x.board.word.Store(uint32(w))
	}
	if x.board.mailbox.Load() != x.mailbox {
		x.board.mailbox.Store(x.mailbox)
	}
}

// statusWord returns the status. It follows onUpstreamLost, which decides when a loss comes.
func (x *exchange) statusWord() statusWord {
	queue := &x.upstream.outstanding
	isBusy := x.upstream.upstreamWork != nil && !queue.isEmpty()
	activity := event.Resting
	switch {
	case x.upstream.Conn == nil && x.client.idle != nil && x.mailbox != nil:
		activity = event.Waiting
	case isBusy:
		activity = event.Active
	}
	switch {
	case x.client.responsePartial:
		return newStatusWord(event.Active, event.SurvivalNo, event.ObstacleResponse)
	case x.upstream.pinReason != "":
		return newStatusWord(activity, event.SurvivalNo, event.ObstaclePinned)
	case !x.isResume && (x.mailbox != nil || x.client.idle != nil || isBusy):
		return newStatusWord(activity, event.SurvivalNo, event.ObstacleReuse)
	case x.mailbox != nil && x.mailbox.IsDesynced():
		return newStatusWord(activity, event.SurvivalNo, event.ObstacleView)
	case !isBusy:
		return newStatusWord(activity, event.SurvivalYes, "")
	}
	for i, e := range queue.all() {
		isPartial := x.upstream.commandPartial && i == len(queue.all())-1
		switch {
		case e.retryable, isPartial:
		case e.spec.Streams:
			return newStatusWord(activity, event.SurvivalNo, event.ObstacleAppend)
		default:
			return newStatusWord(activity, event.SurvivalNo, event.ObstacleWrite)
		}
	}
	return newStatusWord(activity, event.SurvivalPause, "")
}
