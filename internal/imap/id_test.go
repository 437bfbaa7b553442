package imap

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestIDHasBounds(t *testing.T) {
	many := func(n int) string { return "ID (" + strings.TrimSpace(strings.Repeat(`"k" "v" `, n)) + ")" }
	for command, want := range map[string]string{
		`ID NIL`:                            "[]",
		`id nil`:                            "[]",
		`ID ()`:                             "[]",
		`ID ("name" "Mail" "version" NIL)`:  "[[name Mail]]",
		`ID ("name" "NIL" os "a \"b\" \\")`: `[[name NIL] [os a "b" \]]`,
		"ID (\"name\" {3}\r\na\r\n \"os\" {0+}\r\n)": "[[name a\r\n] [os ]]",
		many(30): strings.ReplaceAll(fmt.Sprint(slices.Repeat([][2]string{{"k", "v"}}, 30)), "\n", ""),
		`ID ("k" "` + strings.Repeat("v", 1024) + `")`: "[[k " + strings.Repeat("v", 1024) + "]]",

		"ID": "no", "ID NIL NIL": "no", `ID "name"`: "no", `ID ("name")`: "no", `ID ("name" "a" "b")`: "no", `ID ("name" "a") x`: "no",
		`ID ("name" "a"`: "no", `ID (("name" "a"))`: "no", `ID ("name" ("a"))`: "no", `ID ( "name" "a")`: "no", "ID (\"name\" {9}\r\na)": "no",
		many(31): "no", `ID ("` + strings.Repeat("k", 31) + `" "v")`: "no", `ID ("k" "` + strings.Repeat("v", 1025) + `")`: "no",
	} {
		got := "no"
		if pairs, ok := ParseIDCommand([]byte("a1 " + command + "\r\n")); ok {
			got = fmt.Sprint(pairs)
		}
		if got != want {
			t.Errorf("%.80q is %.80s, want %.80s", command, got, want)
		}
	}
}
