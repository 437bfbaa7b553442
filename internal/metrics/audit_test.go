package metrics_test

import (
	"testing"

	"imapgate/internal/metrics"
)

func TestEverySinkOfTheAuditLogIsExported(t *testing.T) {
	m := metrics.New("v")
	m.ObserveAuditSinks(func(report func(metrics.AuditSinkStatus)) {
		report(metrics.AuditSinkStatus{Name: "file", WrittenRecords: 7})
		report(metrics.AuditSinkStatus{Name: "far", WrittenRecords: 5, LostRecords: 2, Failing: true})
	})
	got := scrape(t, m)
	for series, want := range map[string]string{
		`imapgate_audit_records_total{result="written",sink="file"}`: "7", `imapgate_audit_records_total{result="lost",sink="file"}`: "0",
		`imapgate_audit_records_total{result="lost",sink="far"}`: "2", `imapgate_audit_sink_up{sink="far"}`: "0", `imapgate_audit_sink_up{sink="file"}`: "1",
	} {
		if got[series] != want {
			t.Errorf("%s is %s, want %s", series, got[series], want)
		}
	}
}
