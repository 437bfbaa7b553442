package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/sanitize"
)

// topInterval is how often top asks the gateway.
const topInterval = 2 * time.Second

func newTop() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top", Short: "Watch the busiest sessions and the backends", Args: cobra.NoArgs,
		Long: `Show the gateway's load and its busiest sessions, and follow them. Keys:

  b  sort by bytes per second       c  sort by commands per second
  i  sort by idle time              u  sort by user
  /  filter by user; Enter ends the input, Esc removes the filter
  g  only this gateway, or the fleet
  q  quit

Without a terminal it prints one screen.`,
		Example: "  imapgate top\n  imapgate top --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			m := &topModel{cmd: cmd, client: c, sortBy: 'b', rates: make(map[string]sessionRate)}
			if wantsJSON(cmd) || !isTerminal(cmd.OutOrStdout()) {
				load := m.load()
				if load.err != nil {
					return load.err
				}
				m.accept(load)
				return printResult(cmd, load.topResult, m.View())
			}
			_, err = tea.NewProgram(m, tea.WithContext(cmd.Context()), tea.WithAltScreen()).Run()
			if errors.Is(err, tea.ErrInterrupted) {
				return nil
			}
			return errors.Join(err, m.err)
		},
	}
	return serverFlags(cmd)
}

// topResult is what top shows.
type topResult struct {
	Status   api.Status      `json:"status"`
	Sessions api.SessionList `json:"sessions"`
	Backends api.BackendList `json:"backends"`
}

// topLoad is the answer to a request for it.
type topLoad struct {
	topResult
	at  time.Time
	err error
}

// sessionRate is how busy a session is.
type sessionRate struct {
	bytes             int64
	commands          uint64
	at                time.Time
	perSecond, comSec float64
}

// topModel is the state of top's screen.
type topModel struct {
	cmd    *cobra.Command
	client *client.Client

	latest    topLoad
	err       error
	rates     map[string]sessionRate // by session
	sortBy    rune                   // the key
	filter    string                 // of user names
	isTyping  bool                   // the filter is being typed
	onlyHere  bool
	width     int
	height    int
	bytesRate float64
}

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.request }

func (m *topModel) request() tea.Msg { return m.load() }

// load asks the gateway.
func (m *topModel) load() (t topLoad) {
	ctx, cancel := context.WithTimeout(m.cmd.Context(), client.Timeout)
	defer cancel()
	scope := api.Scope{}
	if m.onlyHere {
		scope.Scope = "gateway"
	}
	t.at = time.Now()
	if t.Status, t.err = client.Do(ctx, m.client, api.ShowStatus, &api.None{}); t.err != nil {
		return t
	}
	if t.Sessions, t.err = listSessions(ctx, m.client, api.SessionFilter{Scope: scope}, 10_000); t.err != nil {
		return t
	}
	t.Backends, t.err = client.Do(ctx, m.client, api.ListBackends, &scope)
	return t
}

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topLoad:
		m.accept(msg)
		return m, tea.Tick(topInterval, func(time.Time) tea.Msg { return m.load() })
	case tea.KeyMsg:
		return m.onKey(msg)
	}
	return m, nil
}

// accept takes over an answer, and works out the rates since the one before it.
func (m *topModel) accept(t topLoad) {
	if m.err = t.err; t.err != nil {
		return
	}
	rates, total := make(map[string]sessionRate, len(t.Sessions.Sessions)), 0.0
	for _, s := range t.Sessions.Sessions {
		r := sessionRate{bytes: s.BytesIn + s.BytesOut, commands: s.Commands, at: t.at}
		if old, ok := m.rates[s.ID]; ok && t.at.After(old.at) {
			seconds := t.at.Sub(old.at).Seconds()
			r.perSecond = max(float64(r.bytes-old.bytes)/seconds, 0)
			r.comSec = max((float64(r.commands)-float64(old.commands))/seconds, 0)
		}
		total += r.perSecond
		rates[s.ID] = r
	}
	m.latest, m.rates, m.bytesRate = t, rates, total
}

func (m *topModel) onKey(key tea.KeyMsg) (tea.Model, tea.Cmd) {
	if m.isTyping {
		switch key.Type {
		case tea.KeyEnter:
			m.isTyping = false
		case tea.KeyEsc:
			m.isTyping, m.filter = false, ""
		case tea.KeyBackspace:
			_, size := utf8.DecodeLastRuneInString(m.filter)
			m.filter = m.filter[:len(m.filter)-size]
		case tea.KeyCtrlC:
			return m, tea.Quit
		case tea.KeyRunes:
			m.filter += string(key.Runes)
		}
		return m, nil
	}
	switch key.String() {
	case "q", "ctrl+c":
		return m, tea.Quit
	case "b", "c", "i", "u":
		m.sortBy = rune(key.String()[0])
	case "g":
		m.onlyHere = !m.onlyHere
	case "/":
		m.isTyping = true
	case "esc":
		m.filter = ""
	}
	return m, nil
}

// View implements tea.Model.
func (m *topModel) View() string {
	var b strings.Builder
	s := &m.latest.Status
	fmt.Fprintf(&b, "%s  %s, up %s  %s, %.1f logins/s, %s/s", sanitize.Line(s.Gateway.Name, 60), coloredState(m.cmd, s.Gateway.State), since(s.Gateway.Started.Time),
		pluralize(m.latest.Sessions.Total, "session"), s.Sessions.LoginsPerSecond, formatBytes(int64(m.bytesRate)))
	if missing := m.latest.Sessions.Gateways.Missing; len(missing) > 0 {
		fmt.Fprintf(&b, "  (%s did not answer)", sanitize.Line(strings.Join(missing, ", "), 100))
	}
	b.WriteString("\n")
	if m.err != nil {
		fmt.Fprintf(&b, "%s\n", sanitize.Line(m.err.Error(), 300))
	}
	for _, a := range s.Alerts {
		fmt.Fprintf(&b, "ALERT %s\n", sanitize.Line(a.Text, 300))
	}
	b.WriteString("\n" + m.formatBackends() + "\n")
	lines := strings.Count(b.String(), "\n") + 2
	rows := m.sortedSessions()
	if m.height > 0 {
		rows = rows[:min(len(rows), max(m.height-lines-1, 1))]
	}
	b.WriteString(newTable(cmp.Or(m.width, screenWidth(m.cmd)), []string{"USER", "CLIENT", "BACKEND", "MODE", "STATE", "BYTES/S", "CMDS/S", "IDLE", "SESSION"}, rows))
	switch {
	case m.isTyping:
		fmt.Fprintf(&b, "filter: %s_", sanitize.Line(m.filter, 100))
	case m.height > 0:
		filter := ""
		if m.filter != "" {
			filter = ", filter " + sanitize.Line(m.filter, 100)
		}
		fmt.Fprintf(&b, "sorted by %c%s   b c i u sort  / filter  g gateway or fleet  q quit", m.sortBy, filter)
	}
	return b.String()
}

// formatBackends returns the backends, the slowest first.
func (m *topModel) formatBackends() string {
	var rows [][]string
	slowest := func(b api.Backend) (latency float64) {
		for _, a := range b.Addresses {
			latency = max(latency, a.Latency)
		}
		return latency
	}
	backends := slices.Clone(m.latest.Backends.Backends)
	slices.SortStableFunc(backends, func(a, b api.Backend) int { return cmp.Compare(slowest(b), slowest(a)) })
	for _, be := range backends[:min(len(backends), 5)] {
		total, states := 0, map[string]int{}
		for _, n := range be.Sessions {
			total += n
		}
		for _, a := range be.Addresses {
			states[a.State]++
		}
		rows = append(rows, []string{
			sanitize.Line(be.Name, 63), fmt.Sprint(total), fmt.Sprintf("%.1f", be.LoginsPerSecond), formatLatency(slowest(be)),
			formatStates(m.cmd, states),
		})
	}
	return newTable(m.width, []string{"BACKEND", "SESSIONS", "LOGINS/S", "LATENCY", "ADDRESSES"}, rows)
}

// formatLatency returns seconds as milliseconds; "-" for none.
func formatLatency(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f ms", seconds*1000)
}

// sortedSessions returns the rows of the sessions that the filter selects.
func (m *topModel) sortedSessions() (rows [][]string) {
	sessions := slices.DeleteFunc(slices.Clone(m.latest.Sessions.Sessions), func(s api.Session) bool {
		return m.filter != "" && !strings.Contains(s.User, strings.ToLower(m.filter))
	})
	slices.SortStableFunc(sessions, func(a, b api.Session) int {
		x, y := m.rates[a.ID], m.rates[b.ID]
		switch m.sortBy {
		case 'c':
			return cmp.Compare(y.comSec, x.comSec)
		case 'i':
			return a.LastActivity.Compare(b.LastActivity.Time)
		case 'u':
			return strings.Compare(a.User, b.User)
		}
		return cmp.Compare(y.perSecond, x.perSecond)
	})
	for _, s := range sessions[:min(len(sessions), 200)] {
		r := m.rates[s.ID]
		rows = append(rows, []string{
			sanitize.Line(s.User, 320), sanitize.Line(s.Client, 60), sanitize.Line(s.Backend, 63), s.Mode, s.State,
			formatBytes(int64(r.perSecond)), fmt.Sprintf("%.1f", r.comSec), since(s.LastActivity.Time), s.ID,
		})
	}
	return rows
}
