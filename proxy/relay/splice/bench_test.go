package splice

import (
	"io"
	"testing"
	"time"
)

// BenchmarkRelay copies a command and its answer, and mail.
func BenchmarkRelay(b *testing.B) {
	for _, kind := range transports {
		b.Run("command/"+kind, func(b *testing.B) {
			cfg := testConfig()
			cfg.ParkAfter = time.Hour
			h := newHarness(b, newSet(b, cfg), kind)
			line, answer := make([]byte, 10), make([]byte, 10)
			b.ReportAllocs()
			for b.Loop() {
				_, _ = h.client.Write(line)
				_, _ = io.ReadFull(h.backend, answer)
				_, _ = h.backend.Write(answer)
				_, _ = io.ReadFull(h.client, line)
			}
		})
		b.Run("mail/"+kind, func(b *testing.B) {
			cfg := testConfig()
			cfg.ParkAfter = time.Hour
			h := newHarness(b, newSet(b, cfg), kind)
			mail, received := make([]byte, 1<<20), make([]byte, 1<<20)
			b.SetBytes(int64(len(mail)))
			b.ReportAllocs()
			for b.Loop() {
				go func() { _, _ = h.backend.Write(mail) }()
				_, _ = io.ReadFull(h.client, received)
			}
		})
	}
}
