package penalty

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"imapgate/internal/identity"
)

func TestFloodOfNamesDoesNotClearAVictim(t *testing.T) {
	f := NewHistory(&Settings{PerUserHour: 10, BanWithin: time.Minute}, func(Spray) {})
	victim := user(t, "victim")
	for range 120 {
		f.Count(victim, netip.MustParseAddr("192.0.2.1"), Counted{User: true})
	}
	for i := range 3 * maxUsers {
		f.Count(user(t, fmt.Sprint("made", i)), netip.MustParseAddr("192.0.2.1"), Counted{User: true})
	}
	if r := f.Record(victim, netip.MustParseAddr("192.0.2.1")); r.User.Day != 120 {
		t.Fatalf("%d of 120 failures are counted", r.User.Day)
	}
	if n := f.users.Len(); n > maxUsers {
		t.Fatalf("the table has %d users", n)
	}
}

func TestFailuresWithoutAUserAreBounded(t *testing.T) {
	f := NewHistory(&Settings{BanWithin: time.Minute}, func(Spray) {})
	for i := range 2 * maxUnnamed {
		f.Weigh(identity.User{}, netip.MustParseAddr("192.0.2.1"), identity.NewSecret(fmt.Sprint(i)))
	}
	if n := f.unnamed.Len(); n > maxUnnamed {
		t.Errorf("the table has %d failures", n)
	}
}
