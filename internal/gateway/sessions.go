package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/sanitize"
	"imapgate/proxy/relay"
)

// kickGrace is how long a session that is told to end may take for its commands in progress.
const kickGrace = 10 * time.Second

// sessionArgs asks a gateway for a page of its sessions.
type sessionArgs struct {
	Query api.SessionQuery `json:"query"`
	ID    string           `json:"id,omitempty"`    // only the session with this id
	After uint64           `json:"after,omitempty"` // position of the last session that is not wanted
	From  string           `json:"from,omitempty"`  // id of the gateway at which After counts; those before it have nothing more
	Limit int              `json:"limit"`
}

// sessionPage is one gateway's part of a list.
type sessionPage struct {
	Gateway  string        `json:"gateway"` // id
	Sessions []api.Session `json:"sessions"`
	Seqs     []uint64      `json:"seqs"` // positions of Sessions
	Total    int           `json:"total"`
}

// sessionCursor is where a list goes on.
type sessionCursor struct {
	Gateway string `json:"g"`
	Seq     uint64 `json:"s"`
}

// ListSessions returns a page of the sessions of the fleet, ordered by gateway and login.
func (g *Gateway) ListSessions(ctx context.Context, in *api.SessionFilter) (api.SessionList, error) {
	args := sessionArgs{Query: in.SessionQuery, Limit: in.Limit}
	if in.Cursor != "" {
		var c sessionCursor
		text, err := base64.RawURLEncoding.DecodeString(in.Cursor)
		if err == nil {
			err = json.Unmarshal(text, &c)
		}
		if err != nil {
			return api.SessionList{}, fmt.Errorf("%w: the cursor is not one of this API", api.ErrBadRequest)
		}
		args.From, args.After = c.Gateway, c.Seq
	}
	if _, err := newSessionMatcher(g, args.Query); err != nil {
		return api.SessionList{}, err
	}
	answers, gateways, err := g.sessionsOperation().ask(ctx, g, in.Scope, args)
	if err != nil {
		return api.SessionList{}, err
	}
	return mergeSessionPages(answers, gateways, in.Limit), nil
}

// mergeSessionPages returns the first sessions of all pages.
func mergeSessionPages(answers []gatewayAnswer[sessionPage], gateways api.Gateways, limit int) api.SessionList {
	slices.SortFunc(answers, func(a, b gatewayAnswer[sessionPage]) int { return strings.Compare(a.answer.Gateway, b.answer.Gateway) })
	list, found := api.SessionList{Sessions: []api.Session{}, Gateways: gateways}, 0
	var last sessionCursor
	for _, a := range answers {
		page := a.answer
		list.Total += page.Total
		found += len(page.Sessions)
		taken := min(len(page.Sessions), limit-len(list.Sessions))
		if taken == 0 {
			continue
		}
		list.Sessions = append(list.Sessions, page.Sessions[:taken]...)
		last = sessionCursor{page.Gateway, page.Seqs[taken-1]}
	}
	if found > len(list.Sessions) || len(list.Sessions) == limit && found > 0 && hasMore(answers, last) {
		text, _ := json.Marshal(last) // a struct of a string and a number
		list.Next = base64.RawURLEncoding.EncodeToString(text)
	}
	return list
}

// hasMore reports whether a gateway has sessions after the last one of the list.
func hasMore(answers []gatewayAnswer[sessionPage], last sessionCursor) bool {
	return slices.ContainsFunc(answers, func(a gatewayAnswer[sessionPage]) bool {
		return a.answer.Gateway >= last.Gateway && a.answer.Total > len(a.answer.Sessions)
	})
}

// sessionsOperation lists the sessions of each gateway.
func (g *Gateway) sessionsOperation() fleetOperation[sessionArgs, sessionPage] {
	return fleetOperation[sessionArgs, sessionPage]{"sessions", g.listOwnSessions}
}

func (g *Gateway) listOwnSessions(_ context.Context, args sessionArgs, _ string) (sessionPage, error) {
	page := sessionPage{Gateway: g.instance, Sessions: []api.Session{}}
	m, err := newSessionMatcher(g, args.Query)
	if err != nil {
		return page, err
	}
	after := args.After
	switch {
	case !m.isHere:
		return page, nil
	case args.From > g.instance:
		after = ^uint64(0)
	case args.From < g.instance:
		after = 0
	}
	if args.ID != "" {
		m.id = args.ID
	}
	for _, live := range g.proxy.Registry().Select(m.query) {
		s, ok := m.match(live)
		if !ok {
			continue
		}
		page.Total++
		if live.Seq() > after && len(page.Sessions) < min(args.Limit, maxPage) {
			page.Sessions, page.Seqs = append(page.Sessions, s), append(page.Seqs, live.Seq())
		}
	}
	return page, nil
}

// maxPage bounds the sessions in the answer of one gateway.
const maxPage = 1000

// sessionMatcher finds the sessions of a gateway that match a query.
type sessionMatcher struct {
	gateway *Gateway
	filter  api.SessionQuery
	id      string // "" for any
	query   relay.Query
	pattern string // of the user; "" if query has the user, or none is asked for
	isHere  bool   // the query is also for this gateway
}

// newSessionMatcher returns the matcher of a query. Its error is an operator's mistake.
func newSessionMatcher(g *Gateway, f api.SessionQuery) (*sessionMatcher, error) {
	m := &sessionMatcher{gateway: g, filter: f, query: relay.Query{Backend: f.Backend}, isHere: true}
	if f.Gateway != "" && f.Gateway != g.name() && f.Gateway != g.instance {
		m.isHere = false
	}
	switch {
	case f.User == "":
	case strings.Contains(f.User, "*"):
		m.pattern = strings.ToLower(f.User)
		if strings.ContainsAny(m.pattern, `[]\?`) {
			return nil, fmt.Errorf("%w: user may have * for any characters, and no other wildcard", api.ErrBadRequest)
		}
	default:
		u, err := g.auth.Canonicalize(f.User)
		if err != nil {
			return nil, fmt.Errorf("%w: invalid user name", api.ErrBadRequest)
		}
		m.query.User = u
	}
	if f.Client != "" {
		net, err := limit.ParseNet(f.Client)
		if err != nil {
			return nil, fmt.Errorf("%w: client: %w", api.ErrBadRequest, err)
		}
		m.query.Client = net
	}
	if f.Backend != "" {
		m.query.Address = f.Address // else match compares it
	}
	return m, nil
}

// match reports whether a session matches, and describes it.
func (m *sessionMatcher) match(live *relay.Session) (s api.Session, ok bool) {
	info, f := live.Info(), &m.filter
	name := info.User.String()
	switch {
	case m.id != "" && info.ID != m.id,
		m.pattern != "" && !matchesPattern(m.pattern, name),
		f.Domain != "" && !strings.EqualFold(info.User.Domain(), f.Domain),
		f.Address != "" && info.Address != f.Address,
		f.Mode != "" && string(info.Mode) != f.Mode,
		f.OlderThan > 0 && time.Since(info.StartedAt).Seconds() < f.OlderThan:
		return s, false
	}
	status := live.Status()
	usage, silence := live.Usage()
	if f.State != "" && string(status.Activity) != f.State || f.Survives != "" && string(status.Survival) != f.Survives ||
		f.IdleOver > 0 && silence.Seconds() < f.IdleOver {
		return s, false
	}
	s = api.Session{
		ID: info.ID, Gateway: m.gateway.name(), User: name, Client: info.Client.String(), Backend: info.Backend, Address: info.Address, Login: info.Login,
		Mode: string(info.Mode), State: string(status.Activity), Mailbox: sanitize.Line(status.Mailbox, maxMailboxName),
		Commands: usage.Commands, BytesIn: usage.Up, BytesOut: usage.Down, Began: api.Time{Time: info.StartedAt},
		LastActivity: api.Time{Time: time.Now().Add(-silence)}, Survives: string(status.Survival), Obstacle: string(status.Obstacle),
	}
	if client, mechanism, ok := m.gateway.proxy.ClientOf(live); ok {
		s.Listener, s.Mechanism, s.ClientName, s.ClientVersion = client.Listener, mechanism, client.Program, client.Version
		if client.TLSVersion != 0 {
			s.TLS = tls.VersionName(client.TLSVersion)
		}
	}
	return s, true
}

// maxMailboxName bounds the name of a mailbox in a list, in bytes.
const maxMailboxName = 200

// matchesPattern reports whether name matches a pattern in which * is for any characters.
func matchesPattern(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if !strings.HasPrefix(name, parts[0]) {
		return false
	}
	name = name[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return strings.HasSuffix(name, last)
}

// GetSession returns one session of the fleet.
func (g *Gateway) GetSession(ctx context.Context, in *api.SessionID) (api.SessionAnswer, error) {
	answers, gateways, err := g.sessionsOperation().ask(ctx, g, in.Scope, sessionArgs{ID: in.ID, Limit: 1})
	if err != nil {
		return api.SessionAnswer{}, err
	}
	for _, a := range answers {
		if len(a.answer.Sessions) > 0 {
			return api.SessionAnswer{Session: a.answer.Sessions[0], Gateways: gateways}, nil
		}
	}
	return api.SessionAnswer{}, fmt.Errorf("%w: %s", api.ErrNotFound, describeMissing("session "+sanitize.Quote(in.ID), gateways))
}

// describeMissing says that no gateway has a thing, and which gateways may have it.
func describeMissing(what string, gateways api.Gateways) string {
	if len(gateways.Missing) == 0 {
		return "there is no " + what
	}
	return fmt.Sprintf("no gateway that has answered has %s; %s did not answer", what, strings.Join(gateways.Missing, ", "))
}

// kickArgs is which sessions of a gateway are to end, and how.
type kickArgs struct {
	ID      string    `json:"id,omitempty"`
	User    string    `json:"user,omitempty"` // canonical
	Backend string    `json:"backend,omitempty"`
	Client  string    `json:"client,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Until   time.Time `json:"until,omitzero"` // the user is refused until then
}

// EndSession ends one session.
func (g *Gateway) EndSession(ctx context.Context, in *api.EndSessionRequest) (api.KickAnswer, error) {
	answer, err := g.kick(ctx, in.Scope, kickArgs{ID: in.ID, Reason: in.Reason})
	if err == nil && answer.Sessions == 0 {
		err = fmt.Errorf("%w: %s", api.ErrNotFound, describeMissing("session "+sanitize.Quote(in.ID), answer.Gateways))
	}
	return answer, err
}

// KickUser ends the sessions of a user.
func (g *Gateway) KickUser(ctx context.Context, in *api.KickRequest) (api.KickAnswer, error) {
	u, err := g.auth.Canonicalize(in.User)
	if err != nil {
		return api.KickAnswer{}, fmt.Errorf("%w: invalid user name", api.ErrBadRequest)
	}
	args := kickArgs{User: u.String(), Backend: in.Body.Backend, Client: in.Body.Client, Reason: in.Body.Reason}
	if in.Body.Client != "" {
		if _, err := limit.ParseNet(in.Body.Client); err != nil {
			return api.KickAnswer{}, fmt.Errorf("%w: client: %w", api.ErrBadRequest, err)
		}
	}
	if d := in.Body.BlockSeconds; d > 0 {
		args.Until = time.Now().Add(time.Duration(d * float64(time.Second))).UTC()
	}
	answer, err := g.kick(ctx, in.Scope, args)
	answer.User, answer.Blocked = u.String(), api.Time{Time: args.Until}
	return answer, err
}

// kick ends sessions at the gateways that scope names.
func (g *Gateway) kick(ctx context.Context, scope api.Scope, args kickArgs) (api.KickAnswer, error) {
	answers, gateways, err := g.kickOperation().ask(ctx, g, scope, args)
	answer := api.KickAnswer{By: make(map[string]int), Gateways: gateways}
	for _, a := range answers {
		answer.Sessions += a.answer
		answer.By[a.gateway] += a.answer
	}
	return answer, err
}

// kickOperation ends sessions at each gateway, and returns how many.
func (g *Gateway) kickOperation() fleetOperation[kickArgs, int] {
	return fleetOperation[kickArgs, int]{"kick", g.kickOwnSessions}
}

func (g *Gateway) kickOwnSessions(_ context.Context, args kickArgs, by string) (n int, err error) {
	q := relay.Query{Backend: args.Backend}
	if args.User == "" && args.ID == "" {
		return 0, errors.New("neither a user nor a session is named")
	}
	if args.User != "" {
		if q.User, err = g.auth.Canonicalize(args.User); err != nil {
			return 0, errors.New("invalid user name")
		}
		if !args.Until.IsZero() {
			g.proxy.BlockUser(q.User, args.Until)
		}
	}
	if args.Client != "" {
		if q.Client, err = limit.ParseNet(args.Client); err != nil {
			return 0, err
		}
	}
	text := ""
	if reason := sanitize.ASCII(args.Reason, maxKickReason); reason != "" {
		text = "[UNAVAILABLE] " + reason
	}
	for _, live := range g.proxy.Registry().Select(q) {
		if args.ID != "" && live.Info().ID != args.ID {
			continue
		}
		if live.EndWith(event.Kicked, text) {
			n++
		}
		time.AfterFunc(kickGrace, func() { live.Abort(event.Kicked) })
	}
	g.recordAction(event.ActionKick, by, cmp.Or(args.User, args.ID), nil)
	return n, nil
}

// maxKickReason bounds the text that clients are sent, in bytes.
const maxKickReason = 200
