package audit

import (
	"testing"

	"imapgate/internal/event"
)

// When a backend restarts, all its sessions lose their upstream at once.
func TestUpstreamLossBurstKeepsBufferForLogins(t *testing.T) {
	l, o := newBufferedLog() // as if the file were stuck
	login := testLogin(t)
	loss := &MuxEvent{User: login.User, Backend: "east", Mailbox: "INBOX"}
	for range maxBufferedRecords {
		if err := l.UpstreamLost(testClient(), loss, event.LossBye); err != nil {
			t.Fatalf("losses alone block logins: %v", err)
		}
	}
	if o.bufferedRecords != maxRecordsForLow || l.LostRecords() != maxBufferedRecords-maxRecordsForLow {
		t.Errorf("%d records wait, %d are counted as lost", o.bufferedRecords, l.LostRecords())
	}
	if err := l.LoginAccepted(testClient(), login); err != nil {
		t.Error(err)
	}
	if err := l.SessionEnded(testClient(), &Session{User: login.User}, event.UpstreamUnavailable); err != nil || o.bufferedRecords != maxRecordsForLow+2 {
		t.Errorf("%d records wait, %v", o.bufferedRecords, err)
	}
}

func TestUnauthenticatedFloodKeepsBufferForLogins(t *testing.T) {
	l, o := newBufferedLog()
	for range 2 * maxBufferedRecords {
		if err := l.ConnectionRefused(testClient(), event.TooManyConnections, "", 0); err != nil {
			t.Fatalf("refused connections alone block logins: %v", err)
		}
	}
	if o.bufferedRecords != maxRecordsForLow || l.LostRecords() != 2*maxBufferedRecords-maxRecordsForLow {
		t.Errorf("%d records wait, %d are counted as lost", o.bufferedRecords, l.LostRecords())
	}
	if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
		t.Error(err)
	}
}
