package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
)

const (
	columnGap = 2
	minColumn = 6 // to which a column is cut, if it has to be
)

// newTable returns rows in aligned columns that fit a width; 0 is any. Columns that are too
// wide are cut, the widest first, but not the first one.
func newTable(width int, header []string, rows [][]string) string {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], text.StringWidthWithoutEscSequences(cell))
		}
	}
	cutColumns(widths, width)
	w := table.NewWriter()
	w.SetStyle(table.Style{Box: table.BoxStyle{PaddingRight: strings.Repeat(" ", columnGap)}})
	configs := make([]table.ColumnConfig, len(widths))
	for i, width := range widths {
		configs[i] = table.ColumnConfig{Number: i + 1, WidthMax: width, WidthMaxEnforcer: cutCell}
	}
	w.SetColumnConfigs(configs)
	w.AppendHeader(toRow(header))
	for _, row := range rows {
		w.AppendRow(toRow(row))
	}
	var b strings.Builder
	for line := range strings.Lines(w.Render()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return b.String()
}

func toRow(cells []string) (row table.Row) {
	for _, c := range cells {
		row = append(row, c)
	}
	return row
}

// cutColumns reduces the widths of columns until the table fits.
func cutColumns(widths []int, width int) {
	for total := 0; width > 0; {
		total = columnGap * (len(widths) - 1)
		for _, w := range widths {
			total += w
		}
		widest := 1
		for i := 1; i < len(widths); i++ {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if total <= width || len(widths) < 2 || widths[widest] <= minColumn {
			return
		}
		widths[widest]--
	}
}

// cutCell cuts a cell to a width, and marks that it is cut.
func cutCell(cell string, width int) string {
	if text.StringWidthWithoutEscSequences(cell) <= width {
		return cell
	}
	return text.Trim(cell, width-1) + "…"
}

// formatTable returns rows in aligned columns. Cells are separated by tabs; the first row is
// the header.
func formatTable(rows []string) string {
	var cells [][]string
	for _, row := range rows {
		cells = append(cells, strings.Split(row, "\t"))
	}
	if len(cells) == 0 {
		return ""
	}
	columns := len(slices.MaxFunc(cells, func(a, b []string) int { return len(a) - len(b) }))
	for len(cells[0]) < columns {
		cells[0] = append(cells[0], "")
	}
	return newTable(0, cells[0], cells[1:])
}

// colored returns text in a colour if the output is a terminal and NO_COLOR is not set.
func colored(cmd *cobra.Command, color text.Color, s string) string {
	if os.Getenv("NO_COLOR") != "" || !isTerminal(cmd.OutOrStdout()) {
		return s
	}
	return color.EscapeSeq() + s + text.Reset.EscapeSeq()
}

// coloredState returns the state of an address or a gateway in its colour.
func coloredState(cmd *cobra.Command, state string) string {
	switch state {
	case "up", "serving", "ok":
		return colored(cmd, text.FgGreen, state)
	case "down", "failing":
		return colored(cmd, text.FgRed, state)
	}
	return colored(cmd, text.FgYellow, state)
}

// formatBytes returns a number of bytes in at most five characters and a unit.
func formatBytes(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	value, unit := float64(n), 0
	for value >= 1000 && unit < len(units)-1 {
		value, unit = value/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}

// formatAge returns how long ago something was, with two units at most.
func formatAge(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// since returns formatAge of a time; "-" for none.
func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return formatAge(time.Since(t))
}

// orDash returns s, or "-" for none.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// tableWidth returns the width that a table needs.
func tableWidth(header []string, rows [][]string) int {
	width := columnGap * (len(header) - 1)
	for i := range header {
		widest := text.StringWidthWithoutEscSequences(header[i])
		for _, row := range rows {
			widest = max(widest, text.StringWidthWithoutEscSequences(row[i]))
		}
		width += widest
	}
	return width
}

// dropColumn returns a table without a column.
func dropColumn(header []string, rows [][]string, column int) ([]string, [][]string) {
	if column < 0 {
		return header, rows
	}
	header = slices.Delete(slices.Clone(header), column, column+1)
	for i, row := range rows {
		rows[i] = slices.Delete(row, column, column+1)
	}
	return header, rows
}
