package config

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"imapgate/proxy/relay/mux"
	"imapgate/proxy/relay/mux/pool"
)

func TestEachMuxKeyReachesTheRelay(t *testing.T) {
	got := mustParse(t, strings.Replace(minimal, `993"}`, `993", mode: resume, mux: {
  pool_idle_timeout: 1s, max_age: 2m, credential_cache: true, credential_cache_ttl: 3s, max_per_user: 4, max_total: 5,
  command_hold_timeout: 6s, idle_reattach_timeout: 7s, uid_prefetch: lazy, uid_prefetch_max_messages: 8, flag_resync_max_messages: 9, max_concurrent_reattaches: 10,
  silence_timeout: 11s, consistency_check: sample, read_after_write: false, hide_capabilities: [sort, X-GM-EXT-1]}}`, 1)).Backends["east"].Mux
	want := mux.Settings{
		Settings:           pool.Settings{PoolIdleTimeout: time.Second, MaxAge: 2 * time.Minute, CredentialCache: true, CredentialCacheTTL: 3 * time.Second, MaxPerUser: 4, MaxTotal: 5},
		CommandHoldTimeout: 6 * time.Second, IdleReattachTimeout: 7 * time.Second, UIDPrefetch: mux.PrefetchLazy, UIDPrefetchMaxMessages: 8, FlagResyncMaxMessages: 9, MaxConcurrentReattaches: 10, SilenceTimeout: 11 * time.Second,
		ConsistencyCheck: mux.CheckSample, HideCapabilities: []string{"sort", "X-GM-EXT-1"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
	// A new setting must be added above, too. Only tests set AlwaysDetach.
	for v, i := reflect.ValueOf(got), 0; i < v.NumField(); i++ {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "AlwaysDetach" && name != "ReadAfterWrite" {
			t.Errorf("%s cannot be set in the file", name)
		}
	}
}

func TestModesWithTheirSettingsAreAccepted(t *testing.T) {
	for _, more := range []string{
		"mode: reuse",
		"mode: reuse, mux: {credential_cache: true}",
		"mode: resume",
		"mode: resume, mux: {pool_idle_timeout: 0s, max_per_user: 0}",
	} {
		b := mustParse(t, strings.Replace(minimal, `993"}`, `993", `+more+`}`, 1)).Backends["east"]
		if !strings.HasPrefix(more, "mode: "+string(b.Mode)) {
			t.Errorf("%s became %s", more, b.Mode)
		}
	}
}
