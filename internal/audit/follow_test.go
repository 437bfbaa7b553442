package audit

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/testkit"
)

// A reader gets what happens from its start on, and is told how much it was too slow for.
func TestFollowersGetRecordsAndHowManyTheyLost(t *testing.T) {
	l := testkit.Must(Open(Config{Settings: Settings{Path: filepath.Join(t.TempDir(), "audit.log"), OnFailure: "drop"}}, zap.NewNop()))(t)
	defer l.Close()
	testkit.NoError(t, l.GatewayStarted("before"))
	f := testkit.Must(l.Follow())(t)
	testkit.NoError(t, l.GatewayStarted("after"))
	records, lost, err := f.Next(t.Context())
	var record struct{ Event, Version string }
	if err != nil || lost != 0 || len(records) != 1 || json.Unmarshal(records[0], &record) != nil || record.Version != "after" {
		t.Errorf("%q, %d lost, %v", records, lost, err)
	}
	for range maxFollowed + 7 {
		testkit.NoError(t, l.GatewayStarted("more"))
	}
	if records, lost, err := f.Next(t.Context()); len(records) != maxFollowed || lost != 7 || err != nil {
		t.Errorf("%d records, %d lost, %v", len(records), lost, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := f.Next(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.Close()
	for range maxFollowers {
		_, err = l.Follow()
		testkit.NoError(t, err)
	}
	if _, err := l.Follow(); !errors.Is(err, ErrTooManyFollowers) {
		t.Error(err)
	}
}
