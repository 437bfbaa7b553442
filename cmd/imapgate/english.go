package main

import (
	"fmt"
	"strings"
)

// counted is a number of things whose plural ends in s: "1 user", "2 users".
func counted[N int | int64 | uint64](n N, thing string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(thing, "s"):
		thing += "es"
	default:
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// are is the verb of so many things.
func are(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// aSpan is "a minute", "an hour", "a day".
func aSpan(unit string) string {
	if unit == "hour" {
		return "an hour"
	}
	return "a " + unit
}
