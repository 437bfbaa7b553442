package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"imapgate/internal/audit"
	"imapgate/internal/duration"
	"imapgate/internal/event"
)

func newAudit() *cobra.Command {
	return withSubcommands(&cobra.Command{
		Use:   "audit",
		Short: "Search and verify the audit log",
	}, newAuditGrep(), newAuditVerify())
}

// auditQuery has the search criteria of audit grep. Zero fields match everything.
type auditQuery struct {
	User    string
	Session string
	Address string
	Events  []string
	Results []string
	Since   string
	Until   string
	JSON    bool

	// Set by parse.
	network      netip.Prefix // invalid: any
	since, until time.Time    // zero: any
}

func newAuditGrep() *cobra.Command {
	var s auditQuery
	cmd := &cobra.Command{
		Use:   "grep [FILE...]",
		Short: "Search the audit log",
		Long: `Print the records that match all criteria, oldest file first. Files may be compressed
with gzip. Without any file, or with -, it reads standard input.

A time is a duration before now (90m, 24h, 7d, 2w), a day (2026-05-01), or a date and time
(2026-05-01T12:00:00Z, or 2026-05-01T12:00:00 in local time).
The exit status is 1 if nothing was found.`,
		Example: `  imapgate audit grep --user alice@example.org --since 24h /var/log/imapgate/audit.log*
  imapgate audit grep --result refused,unavailable --address 192.0.2.0/24 audit.log
  redis-cli --raw XRANGE imapgate:audit - + | imapgate audit grep --event ban_added`,
		RunE: func(cmd *cobra.Command, names []string) error { return auditGrep(cmd, s, names) },
	}
	events, results := event.Values("Event"), event.Values("Result", "record")
	flags := cmd.Flags()
	flags.StringVar(&s.User, "user", "", "records of this user, with the domain, or of this name as the client sent it")
	flags.StringVar(&s.Session, "session", "", "records of this session")
	flags.StringVar(&s.Address, "address", "", "records of clients with this address or in this network, and of its bans")
	flags.StringSliceVar(&s.Events, "event", nil, "only these events: "+strings.Join(events, ", "))
	flags.StringSliceVar(&s.Results, "result", nil, "only these results: "+strings.Join(results, ", "))
	flags.StringVar(&s.Since, "since", "", "at or after this time")
	flags.StringVar(&s.Until, "until", "", "before this time")
	flags.BoolVar(&s.JSON, "json", false, "print the records unchanged, as JSON")
	_ = cmd.RegisterFlagCompletionFunc("event", cobra.FixedCompletions(events, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("result", cobra.FixedCompletions(results, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func auditGrep(cmd *cobra.Command, s auditQuery, names []string) error {
	if err := s.parse(time.Now()); err != nil {
		return err
	}
	if len(names) == 0 {
		if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
			return errors.New("no input: name at least one file, or - for standard input")
		}
		names = []string{"-"}
	}
	files, err := openAuditFiles(names, cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer closeAuditFiles(files)
	printer := &matchPrinter{query: &s, out: bufio.NewWriter(cmd.OutOrStdout()),
		format: recordFormat{timeLayout: time.DateTime, useColour: supportsColour(cmd.OutOrStdout())}}
	for _, f := range files {
		if err := f.eachLine(printer.printMatch); err != nil {
			return errors.Join(err, printer.out.Flush())
		}
	}
	if err := printer.out.Flush(); err != nil {
		return err
	}
	if printer.malformed > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "skipped %s without a record\n", pluralize(printer.malformed, "line"))
	}
	if printer.matched == 0 {
		return errReported
	}
	return nil
}

// matchPrinter prints the records that match.
type matchPrinter struct {
	query     *auditQuery
	format    recordFormat
	out       *bufio.Writer
	matched   int
	malformed int // lines that are not records
}

// isStreamMarker reports whether text is a line that redis-cli --raw prints before a
// stream's record: the entry's id, or the name of its field.
func isStreamMarker(text []byte) bool {
	ms, n, _ := strings.Cut(string(text), "-")
	_, err1 := strconv.ParseUint(ms, 10, 64)
	_, err2 := strconv.ParseUint(n, 10, 64)
	return string(text) == "record" || err1 == nil && err2 == nil
}

// printMatch prints one line if it is a record that matches.
func (m *matchPrinter) printMatch(text []byte) error {
	if isStreamMarker(text) {
		return nil
	}
	var r auditRecord
	if json.Unmarshal(text, &r) != nil || r.Event == "" {
		m.malformed++
		return nil
	}
	if !m.query.matches(&r) {
		return nil
	}
	m.matched++
	if m.query.JSON {
		_, err := fmt.Fprintf(m.out, "%s\n", text)
		return err
	}
	_, err := fmt.Fprintln(m.out, m.format.format(&r))
	return err
}

// parse checks the criteria and parses those that are not words.
func (q *auditQuery) parse(now time.Time) (err error) {
	if err := checkWords("event", q.Events, event.Values("Event")); err != nil {
		return err
	}
	if err := checkWords("result", q.Results, event.Values("Result", "record")); err != nil {
		return err
	}
	var ok bool
	if q.network, ok = parseNetwork(q.Address); q.Address != "" && !ok {
		return fmt.Errorf("--address %q is neither an address nor a network", q.Address)
	}
	if q.since, err = parseTime(q.Since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if q.until, err = parseTime(q.Until, now); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	return nil
}

// checkWords returns an error if a flag has a word that is not allowed.
func checkWords(flag string, words, allowed []string) error {
	for _, word := range words {
		if !slices.Contains(allowed, word) {
			return fmt.Errorf("--%s %q is not one of %s", flag, word, strings.Join(allowed, ", "))
		}
	}
	return nil
}

// parseNetwork parses a network or an address, which is a network of one.
func parseNetwork(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}

// parseTime parses a time of the command line; "" is the zero time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := duration.Parse(s); err == nil {
		return now.Add(-ago), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time such as 24h, 7d, 2026-05-01 or 2026-05-01T12:00:00Z", s)
}

func (q *auditQuery) matches(l *auditRecord) bool {
	return (q.User == "" || strings.EqualFold(l.User, q.User) || strings.EqualFold(l.ClaimedName, q.User) || l.Subject == q.User) &&
		(q.Session == "" || l.Session == q.Session) &&
		(len(q.Events) == 0 || slices.Contains(q.Events, l.Event)) &&
		(len(q.Results) == 0 || slices.Contains(q.Results, l.Result)) &&
		(q.since.IsZero() || !l.Time.Before(q.since)) &&
		(q.until.IsZero() || l.Time.Before(q.until)) &&
		(!q.network.IsValid() || q.concernsNetwork(l))
}

// concernsNetwork reports whether the record's client or subject is in the network.
func (q *auditQuery) concernsNetwork(l *auditRecord) bool {
	for _, addr := range []string{l.Client, l.Peer} {
		if a, err := netip.ParseAddrPort(addr); err == nil && q.network.Contains(a.Addr()) {
			return true
		}
	}
	subject, ok := parseNetwork(l.Subject)
	return ok && q.network.Overlaps(subject)
}

func newAuditVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE...",
		Short: "Check that no record was changed, added or removed",
		Long: `Verify the chain of hashes of an audit log written with audit.chain: true, over all named
files, oldest first whatever their order here. They may be compressed with gzip. A line that a
killed process left unfinished is skipped and counted.

The chain does not reveal that the newest records were removed, or that someone with write
access rewrote all files: compare the last number and hash with a copy elsewhere.
The exit status is 1 if the chain is broken.`,
		Example: "  imapgate audit verify /var/log/imapgate/audit.log*",
		RunE:    func(cmd *cobra.Command, names []string) error { return auditVerify(cmd, names) },
	}
}

func auditVerify(cmd *cobra.Command, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("at least one file is needed: %s", cmd.UseLine())
	}
	files, err := openAuditFiles(names, cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer closeAuditFiles(files)
	sortByChain(files)
	out := cmd.OutOrStdout()
	var v audit.Verifier
	for _, f := range files {
		var broken *audit.ChainError
		if err := v.VerifyFile(f.r); errors.As(err, &broken) {
			fmt.Fprintf(out, "%s:%d: %s\n", f.name, broken.Line, broken.Reason)
			return errReported
		} else if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return printVerification(out, &v)
}

func printVerification(out io.Writer, v *audit.Verifier) error {
	if v.Records == 0 {
		fmt.Fprintln(out, "no chained records found")
		return errReported
	}
	if v.PartialLines > 0 {
		fmt.Fprintf(out, "skipped: %s\n", pluralize(v.PartialLines, "unfinished line"))
	}
	last, hash := v.Last()
	records := fmt.Sprintf("records %d to %d; the last", v.FirstSeq, last)
	if v.FirstSeq == last {
		records = fmt.Sprintf("record %d, which", last)
	}
	_, err := fmt.Fprintf(out, "OK: %s has the hash %s\n", records, hash)
	return err
}

// maxAuditLineBytes bounds a line, which the gateway never reaches.
const maxAuditLineBytes = 64 << 10

// auditFile is a file of the audit log, compressed or not.
type auditFile struct {
	name   string
	first  recordOrder // of its first record
	r      *bufio.Reader
	closer io.Closer
}

// openAuditFiles opens files and sorts them by their first records, because a shell
// lists the newest first.
func openAuditFiles(names []string, stdin io.Reader) ([]*auditFile, error) {
	var files []*auditFile
	for _, name := range names {
		f, err := openAuditFile(name, stdin)
		if err != nil {
			closeAuditFiles(files)
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortStableFunc(files, func(a, b *auditFile) int { return a.first.Time.Compare(b.first.Time) })
	return files, nil
}

// sortByChain sorts files by their chain numbers, which do not depend on the clock.
func sortByChain(files []*auditFile) {
	slices.SortStableFunc(files, func(a, b *auditFile) int { return cmp.Compare(a.first.Seq, b.first.Seq) })
}

func closeAuditFiles(files []*auditFile) {
	for _, f := range files {
		_ = f.closer.Close() // it was only read
	}
}

// openAuditFile opens a file; "-" is standard input.
func openAuditFile(name string, stdin io.Reader) (*auditFile, error) {
	f := &auditFile{name: name, r: bufio.NewReaderSize(stdin, maxAuditLineBytes), closer: io.NopCloser(stdin)}
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		f.r, f.closer = bufio.NewReaderSize(file, maxAuditLineBytes), file
	}
	if magic, _ := f.r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // RFC 1952
		unzipped, err := gzip.NewReader(f.r)
		if err != nil {
			_ = f.closer.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.r = bufio.NewReaderSize(unzipped, maxAuditLineBytes)
	}
	f.first = peekFirstRecord(f.r)
	return f, nil
}

// recordOrder has what records are sorted by.
type recordOrder struct {
	Time time.Time `json:"time"`
	Seq  uint64    `json:"seq"` // number in the chain; 0 without one
}

// peekFirstRecord returns the first record, or zero, without consuming it.
func peekFirstRecord(in *bufio.Reader) recordOrder {
	_, _ = in.Peek(1) // fills the buffer
	buffered, _ := in.Peek(in.Buffered())
	for text := range bytes.Lines(buffered) {
		var l recordOrder
		if json.Unmarshal(text, &l) == nil && !l.Time.IsZero() {
			return l
		}
	}
	return recordOrder{}
}

// eachLine calls visit with each line, without its newline, until visit fails.
func (f *auditFile) eachLine(visit func([]byte) error) error {
	for {
		text, err := f.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			text, err = nil, f.skipLine() // visited as an empty line, which is not a record
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err == nil || len(text) > 0 {
			if visitErr := visit(bytes.TrimSuffix(text, []byte{'\n'})); visitErr != nil {
				return visitErr
			}
		}
		if err != nil {
			return nil
		}
	}
}

// skipLine reads the rest of a line that is too long.
func (f *auditFile) skipLine() error {
	for {
		if _, err := f.r.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
