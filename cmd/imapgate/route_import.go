package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/config"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

const (
	// routePage is how many records a command reads at a time.
	routePage = 500
	// maxImportLine bounds a line of an import, in bytes.
	maxImportLine = 64 << 10
	// maxImportProblems bounds the refused records that an import prints.
	maxImportProblems = 100
)

// routeColumns are the columns of CSV, besides kind and name. Constant.
var routeColumns = []string{"backend", "login", "mode", "state"}

func newRouteList() *cobra.Command {
	var q routing.ListQuery
	var limit int
	cmd := &cobra.Command{
		Use: "list", Short: "List the records", Args: cobra.NoArgs,
		Long: `List the route records in Redis: the default, the domains' and the users'. Users without a
record of their own are not in the list.`,
		Example: "  imapgate route list\n  imapgate route list --backend east --name '*@example.org'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withRecords(cmd, func(ctx context.Context, t *routeCommand) error {
				var list []routing.Record
				more, err := eachRecord(ctx, t.router, q, func(r routing.Record) error { list = append(list, r); return nil }, limit)
				if err != nil {
					return err
				}
				rows, result := [][]string{}, []map[string]any{}
				for _, r := range list {
					rows = append(rows, []string{r.Target.Kind(), r.Target.String(), r.Fields["backend"], orDash(r.Fields["login"]), orDash(r.Fields["mode"]), orDash(r.Fields["state"])})
					result = append(result, map[string]any{"kind": r.Target.Kind(), "name": r.Target.String(), "fields": r.Fields})
				}
				text := newTable(screenWidth(cmd), []string{"KIND", "NAME", "BACKEND", "LOGIN", "MODE", "STATE"}, rows) + pluralize(len(list), "record") + "\n"
				if more {
					text += "there are more; --limit shows them\n"
				}
				return printResult(cmd, result, text)
			})
		},
	}
	cmd.Flags().StringVar(&q.Kind, "kind", "", "only records of this kind: user, domain or default")
	cmd.Flags().StringVar(&q.Backend, "backend", "", "only records that name this backend")
	cmd.Flags().StringVar(&q.Name, "name", "", "only of this name; with * for any characters")
	cmd.Flags().IntVar(&limit, "limit", 1000, "at most so many")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"user", "domain", "default"}, cobra.ShellCompDirectiveNoFileComp)) // the flag was just made
	return cmd
}

// withRecords opens a router for one call that may take long.
func withRecords(cmd *cobra.Command, call func(context.Context, *routeCommand) error) error {
	cfg, err := config.Load(configFile(cmd))
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	return withRouter(&routeCommand{cmd: cmd, cfg: cfg}, func(_ context.Context, t *routeCommand) error { return call(ctx, t) })
}

// eachRecord calls each with up to limit records; 0 is all. more reports whether there are others.
func eachRecord(ctx context.Context, r *routing.Router, q routing.ListQuery, each func(routing.Record) error, limit int) (more bool, err error) {
	cursor, n := "", 0
	for {
		page := routePage
		if limit > 0 {
			page = min(page, limit-n)
		}
		records, next, err := r.List(ctx, q, cursor, page)
		if err != nil {
			return false, err
		}
		for _, record := range records {
			if err := each(record); err != nil {
				return false, err
			}
		}
		if n += len(records); next == "" || limit > 0 && n >= limit {
			return next != "", nil
		}
		cursor = next
	}
}

func newRouteExport() *cobra.Command {
	var q routing.ListQuery
	cmd := &cobra.Command{
		Use: "export", Short: "Write the records as CSV", Args: cobra.NoArgs,
		Long: `Write all records to standard output as CSV with a header, which imapgate route import
reads. Passwords are left out. With --json each line is a record.`,
		Example: "  imapgate route export >routes.csv\n  imapgate route export --backend east --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withRecords(cmd, func(ctx context.Context, t *routeCommand) error {
				out := bufio.NewWriter(cmd.OutOrStdout())
				w := csv.NewWriter(out)
				if !wantsJSON(cmd) {
					if err := w.Write(append([]string{"kind", "name"}, routeColumns...)); err != nil {
						return err
					}
				}
				_, err := eachRecord(ctx, t.router, q, func(r routing.Record) error { return writeRecord(cmd, out, w, r) }, 0)
				w.Flush()
				return errors.Join(err, w.Error(), out.Flush())
			})
		},
	}
	cmd.Flags().StringVar(&q.Backend, "backend", "", "only records that name this backend")
	return cmd
}

// writeRecord writes one record of an export.
func writeRecord(cmd *cobra.Command, out io.Writer, w *csv.Writer, r routing.Record) error {
	name := r.Target.String()
	if r.Target.Kind() == "default" {
		name = ""
	}
	if wantsJSON(cmd) {
		delete(r.Fields, "password")
		delete(r.Fields, "user")
		return json.NewEncoder(out).Encode(map[string]any{"kind": r.Target.Kind(), "name": name, "fields": r.Fields})
	}
	row := []string{r.Target.Kind(), name}
	for _, column := range routeColumns {
		row = append(row, r.Fields[column])
	}
	return w.Write(row)
}

// importedRecord is a record of a file.
type importedRecord struct {
	line       int
	kind, name string
	fields     map[string]string
}

func newRouteImport() *cobra.Command {
	var format string
	var dryRun bool
	hosts := make(map[string]string)
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Write many records from a file", Args: requireOne("file"),
		Long: `Write the records of a file to Redis. Other fields of a record stay, and other records too.
Each record is written or refused by itself; refused ones are printed, and the exit status is
then 1. The formats are:

  csv        with a header: kind (user, domain, default), name, backend, login, mode, state, or
             instead of kind and name a column user or domain. imapgate route export writes it.
  perdition  a map of Perdition: a line "user: host:port" for each user
  passwd     a passwd-file of Dovecot: user:…, with host=NAME among the extra fields

The last two name hosts. A host is the backend that has it as an address, or the one that
--host says. "-" is standard input.`,
		Example: `  imapgate route import routes.csv --dry-run
  imapgate route import popmap --format perdition --host mail1.example.org=east --host mail2.example.org=west
  imapgate route import /etc/dovecot/proxy-users --format passwd`,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := openInput(cmd, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			return withRecords(cmd, func(ctx context.Context, t *routeCommand) error {
				parse := map[string]parseFunc{"csv": parseCSV, "perdition": parsePerdition, "passwd": parsePasswd}[format]
				if parse == nil {
					return fmt.Errorf("%w: --format %s: expected csv, perdition or passwd", errUsage, sanitize.Quote(format))
				}
				i := &importer{cmd: cmd, router: t.router, cfg: t.cfg, hosts: hosts, dryRun: dryRun, result: api.RouteImportAnswer{Errors: []string{}}}
				if err := parse(in, i, func(r importedRecord) error { return i.write(ctx, r) }); err != nil {
					return err
				}
				return i.print()
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "csv", "csv, perdition or passwd")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; say what would be done")
	cmd.Flags().StringToStringVar(&hosts, "host", nil, "host=backend, for a host that is no address of a backend")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"csv", "perdition", "passwd"}, cobra.ShellCompDirectiveNoFileComp)) // the flag was just made
	return cmd
}

func openInput(cmd *cobra.Command, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	return os.Open(path)
}

// parseFunc reads a file and calls each with its records.
type parseFunc func(in io.Reader, i *importer, each func(importedRecord) error) error

// importer writes the records of a file.
type importer struct {
	cmd    *cobra.Command
	router *routing.Router
	cfg    *config.Config
	hosts  map[string]string
	dryRun bool
	result api.RouteImportAnswer
}

// refuse counts a record that is not written.
func (i *importer) refuse(line int, err error) {
	if i.result.Refused++; len(i.result.Errors) < maxImportProblems {
		i.result.Errors = append(i.result.Errors, sanitize.Line(fmt.Sprintf("line %d: %v", line, err), 500))
	}
}

// write writes one record. Its error ends the import.
func (i *importer) write(ctx context.Context, r importedRecord) error {
	target, err := routing.TargetOf(i.cfg.Auth.NameRules, r.kind, r.name)
	var done routing.ImportResult
	if err == nil {
		done, err = i.router.Import(ctx, target, r.fields, i.dryRun)
	}
	switch {
	case errors.Is(err, routing.ErrInvalidRecord):
		i.refuse(r.line, err)
	case err != nil:
		return fmt.Errorf("line %d: %w; the records before it are written", r.line, err)
	case done == routing.ImportCreated:
		i.result.Created++
	case done == routing.ImportChanged:
		i.result.Changed++
	default:
		i.result.Unchanged++
	}
	if n := i.result.Created + i.result.Changed + i.result.Unchanged + i.result.Refused; n%1000 == 0 && isTerminal(i.cmd.ErrOrStderr()) {
		fmt.Fprintf(i.cmd.ErrOrStderr(), "\r%d records", n)
	}
	return nil
}

func (i *importer) print() error {
	if isTerminal(i.cmd.ErrOrStderr()) {
		fmt.Fprint(i.cmd.ErrOrStderr(), "\r")
	}
	text := ""
	for _, e := range i.result.Errors {
		text += e + "\n"
	}
	verb := ""
	if i.dryRun {
		verb = "would be "
	}
	text += fmt.Sprintf("%d %screated, %d %schanged, %d unchanged, %d refused\n", i.result.Created, verb, i.result.Changed, verb, i.result.Unchanged, i.result.Refused)
	if err := printResult(i.cmd, i.result, text); err != nil {
		return err
	}
	if i.result.Refused > 0 {
		return errReported
	}
	return nil
}

// backendOf returns the backend that a host of another program's map means.
func (i *importer) backendOf(host string) (string, error) {
	host = strings.ToLower(strings.TrimSpace(host))
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	for _, known := range []string{host, name} {
		if backend := i.hosts[known]; backend != "" {
			return backend, nil
		}
	}
	for _, backend := range slices.Sorted(maps.Keys(i.cfg.Backends)) {
		b := i.cfg.Backends[backend]
		for _, address := range b.AllHosts() {
			own, _, _ := net.SplitHostPort(strings.ToLower(address))
			if strings.EqualFold(address, host) || own == name {
				return backend, nil
			}
		}
	}
	return "", fmt.Errorf("%w: no backend has the host %s; --host %[2]s=BACKEND names one", routing.ErrInvalidRecord, name)
}

// parseCSV reads CSV with a header.
func parseCSV(in io.Reader, i *importer, each func(importedRecord) error) error {
	r := csv.NewReader(in)
	r.FieldsPerRecord, r.TrimLeadingSpace, r.ReuseRecord = -1, true, true
	header, err := r.Read()
	if err != nil {
		return fmt.Errorf("the header: %w", err)
	}
	columns := slices.Clone(header)
	for n, name := range columns {
		columns[n] = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))
		if !slices.Contains(append([]string{"kind", "name", "user", "domain", "password"}, routeColumns...), columns[n]) {
			return fmt.Errorf("the header has a column %s; the columns are kind, name, user, domain, %s, password", sanitize.Quote(name), strings.Join(routeColumns, ", "))
		}
	}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line, _ := r.FieldPos(0)
		if len(row) != len(columns) {
			i.refuse(line, fmt.Errorf("%d fields, and the header has %d", len(row), len(columns)))
			continue
		}
		record := importedRecord{line: line, kind: "user", fields: make(map[string]string)}
		for n, column := range columns {
			switch value := strings.TrimSpace(row[n]); {
			case column == "kind" && value != "":
				record.kind = strings.ToLower(value)
			case column == "name", column == "user" && value != "":
				record.name = value
			case column == "domain" && value != "":
				record.kind, record.name = "domain", value
			case value != "" && column != "kind" && column != "user" && column != "domain":
				record.fields[column] = value
			}
		}
		if err := each(record); err != nil {
			return err
		}
	}
}

// eachLine calls each with the lines of a file that are neither empty nor comments.
func eachLine(in io.Reader, each func(line int, text string) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxImportLine)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if err := each(n, text); err != nil {
			return err
		}
	}
	return lines.Err()
}

// parsePerdition reads a map of Perdition: lines "user: host:port".
func parsePerdition(in io.Reader, i *importer, each func(importedRecord) error) error {
	return eachLine(in, func(line int, text string) error {
		user, host, ok := strings.Cut(text, ":")
		if !ok {
			i.refuse(line, errors.New("expected user: host:port"))
			return nil
		}
		return i.eachHost(line, strings.TrimSpace(user), host, each)
	})
}

// parsePasswd reads a passwd-file of Dovecot: user:password:uid:gid:gecos:home:shell:extra.
func parsePasswd(in io.Reader, i *importer, each func(importedRecord) error) error {
	return eachLine(in, func(line int, text string) error {
		fields := strings.SplitN(text, ":", 8)
		if len(fields) < 8 {
			i.refuse(line, errors.New("it has no extra fields, where host= would be"))
			return nil
		}
		for word := range strings.FieldsSeq(fields[7]) {
			if host, ok := strings.CutPrefix(word, "host="); ok {
				return i.eachHost(line, fields[0], host, each)
			}
		}
		i.refuse(line, errors.New("it has no host= among its extra fields"))
		return nil
	})
}

// eachHost calls each with the record of a user whose mail is at a host.
func (i *importer) eachHost(line int, user, host string, each func(importedRecord) error) error {
	backend, err := i.backendOf(host)
	if err != nil {
		i.refuse(line, err)
		return nil
	}
	return each(importedRecord{line, "user", user, map[string]string{"backend": backend}})
}
