package mux

import (
	"fmt"
	"strings"
	"testing"
)

// TestAStoppingSessionReadsNoMoreCommands sends more commands in one packet than may be
// outstanding. The remaining ones do not keep a session alive that must end.
func TestAStoppingSessionReadsNoMoreCommands(t *testing.T) {
	checkGoroutineLeaks(t)
	var sent strings.Builder
	var forwarded, answers []string
	for i := range 2 * maxOutstandingCommands {
		fmt.Fprintf(&sent, "a%d FETCH 1 FLAGS\r\n", i)
	}
	for i := range maxOutstandingCommands {
		forwarded = append(forwarded, fmt.Sprintf("U1 a%d FETCH 1 FLAGS", i))
		answers = append(answers, fmt.Sprintf("B1 a%d OK done", i), fmt.Sprintf("P a%d OK done", i))
	}
	lines := append([]string{"OPEN 1 2 7", fmt.Sprintf("C! %q", sent.String())}, forwarded...)
	lines = append(append(lines, "OVERDUE 0s"), answers...)
	lines = append(lines, "P * BYE [EXPIRED] Token has expired, please log in again.", "END", "ENDED token_expired")
	dialogue{lines: lines}.play(t, nil, "plain", "whole")
}
