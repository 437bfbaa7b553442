package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"imapgate/internal/event"
	"imapgate/internal/sanitize"
)

// maxEventLine bounds a line of the stream of events, in bytes.
const maxEventLine = 64 << 10

func newEvents() *cobra.Command {
	filters := map[string]*string{"user": new(string), "client": new(string), "backend": new(string), "event": new(string)}
	cmd := &cobra.Command{
		Use: "events", Short: "Follow what happens at the gateway", Args: cobra.NoArgs,
		Long: `Print the audit records of one gateway as they happen, until interrupted. The flags select
records; without any, all are printed. With --json each is a line of JSON, as in the audit log.
If they come faster than they can be printed, some are left out, and their number is printed.`,
		Example: `  imapgate events
  imapgate events --user alice@example.org
  imapgate events --event login_refused,ban_added --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			query := url.Values{}
			for name, value := range filters {
				if *value != "" {
					query.Set(name, *value)
				}
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			stream, err := c.Get(ctx, "/api/v1/events", query)
			if err != nil {
				return err
			}
			defer stream.Close()
			err = printEvents(cmd, stream)
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("the gateway has closed the stream: %w", err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(filters["user"], "user", "", "about this user")
	flags.StringVar(filters["client"], "client", "", "about clients with this IP address")
	flags.StringVar(filters["backend"], "backend", "", "about this backend")
	flags.StringVar(filters["event"], "event", "", "of these kinds, separated by commas")
	_ = cmd.RegisterFlagCompletionFunc("event", cobra.FixedCompletions(event.Values("Event"), cobra.ShellCompDirectiveNoFileComp)) // the flag was just made
	completeWords(cmd)
	return serverFlags(cmd)
}

// printEvents prints the events of a stream until it ends.
func printEvents(cmd *cobra.Command, stream io.Reader) error {
	lines := bufio.NewScanner(stream)
	lines.Buffer(nil, maxEventLine)
	for name := ""; lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			name = rest
			continue
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		text := data + "\n"
		if !wantsJSON(cmd) {
			text = formatEvent(name, data)
		}
		if _, err := io.WriteString(cmd.OutOrStdout(), text); err != nil {
			return err
		}
	}
	return lines.Err()
}

// formatEvent returns the line of a record: time, event, and the fields in the order of the
// record.
func formatEvent(name, data string) string {
	if name == "lost" {
		return "records were left out: " + sanitize.Line(data, 100) + "\n"
	}
	d := json.NewDecoder(strings.NewReader(data))
	_, _ = d.Token() // the opening brace
	fields := []string{"", ""}
	for d.More() {
		key, err := d.Token()
		var value any
		if err != nil || d.Decode(&value) != nil {
			return sanitize.Line(data, maxEventLine) + "\n"
		}
		switch key {
		case "time":
			fields[0] = fmt.Sprint(value)
		case "event":
			fields[1] = fmt.Sprint(value)
		case "v", "seq", "hash", "prev":
		default:
			fields = append(fields, fmt.Sprintf("%v=%v", key, value))
		}
	}
	return sanitize.Line(strings.Join(fields, " "), maxEventLine) + "\n"
}
