package mailbox

import (
	"testing"

	"imapgate/internal/imap"
)

func TestCountOfMessagesInASet(t *testing.T) {
	for _, c := range []struct {
		known         string
		tail          uint32
		set           string
		numbers, uids uint32
	}{
		{"", 0, "1:*", 0, 0},
		{"", 0, "*", 0, 0},
		{"", 3, "1:*", 3, 3},
		{"", 3, "*", 1, 1},
		{"", 3, "2:*", 2, 0}, // the largest UID is unknown
		{"", 3, "7:8", 0, 2}, // an upper bound
		{"", 3, "1:4294967294", 3, 3},
		{"", 3, "7:*", 1, 0},
		{"5:9,20", 0, "1:*", 6, 6},
		{"5:9,20", 0, "5:9", 2, 5},
		{"5:9,20", 0, "9:30", 0, 2},
		{"5:9,20", 0, "21:*", 1, 1}, // * is always the last message
		{"5:9,20", 0, "*", 1, 1},
		{"5:9,20", 0, "10:19", 0, 0},
		{"5:9,20", 0, "1,1,1,1,1,1,1,1,5,5,5,5,5,5,5,5", 6, 6},
		{"5:9", 2, "6:12", 2, 6},
		{"5:9", 2, "10:*", 1, 2},
		{"5:9", 2, "3:*", 5, 7},
		{"5:9", 2, "11:*", 1, 0},
	} {
		v := newView(t, c.known, c.tail)
		set, err := imap.ParseSet(c.set)
		if err != nil {
			t.Fatal(err)
		}
		if n, u := v.CountNumbers(set), v.CountUIDs(set); n != c.numbers || u != c.uids {
			t.Errorf("%s of %v: %d numbers, %d UIDs; want %d and %d", c.set, v, n, u, c.numbers, c.uids)
		}
	}
}
