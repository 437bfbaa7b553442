package audit

import "testing"

// When a backend restarts, all its sessions lose their upstream at once.
func TestBurstOfLossesLeavesRoomForLoginsAndEnds(t *testing.T) {
	l, o := unwritten() // as if the file were stuck
	login := testLogin(t)
	loss := &Mux{User: login.User, Backend: "east", Mailbox: "INBOX", Why: LostBye}
	for range maxWaiting {
		if err := l.UpstreamLost(testClient(), loss); err != nil {
			t.Fatalf("losses alone block logins: %v", err)
		}
	}
	if o.waiting != fullForRest || l.Lost() != maxWaiting-fullForRest {
		t.Errorf("%d records wait, %d are counted as lost", o.waiting, l.Lost())
	}
	if err := l.LoginAccepted(testClient(), login); err != nil {
		t.Error(err)
	}
	if err := l.SessionEnded(testClient(), &Session{User: login.User}, UpstreamAway); err != nil || o.waiting != fullForRest+2 {
		t.Errorf("%d records wait, %v", o.waiting, err)
	}
}

func TestStrangersWithoutEndLeaveRoomForLoginsAndEnds(t *testing.T) {
	l, o := unwritten()
	for range 2 * maxWaiting {
		if err := l.ConnectionRefused(testClient(), TooMany, "", 0); err != nil {
			t.Fatalf("refused connections alone block logins: %v", err)
		}
	}
	if o.waiting != fullForRest || l.Lost() != 2*maxWaiting-fullForRest {
		t.Errorf("%d records wait, %d are counted as lost", o.waiting, l.Lost())
	}
	if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
		t.Error(err)
	}
}
