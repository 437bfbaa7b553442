//go:build unix

package limit

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/testbed"
)

// BenchmarkLogin measures the cost of all limits for a successful login, from Open to Close. The
// time includes waits for Redis; cpu-ns/op does not.
func BenchmarkLogin(b *testing.B) {
	for _, c := range []struct {
		name   string
		shared bool
	}{{"local", false}, {"shared", true}} {
		b.Run(c.name, func(b *testing.B) {
			cfg := defaultConfig()
			cfg.Connections = Connections{PerUserAddress: 1 << 20, PerUser: 1 << 20, PerAddress: 1 << 20, PreauthPerAddress: 1 << 20, Total: 1 << 20, NewPerMinute: 1 << 20, NewBurst: 1 << 20}
			var client redis.UniversalClient
			if c.shared {
				client = dialRedis(b, testbed.StartRedis(b).Address)
			}
			l, err := New(cfg, client, Hooks{}, zap.NewNop())
			if err != nil {
				b.Fatal(err)
			}
			began := cpu(b)
			for i := 0; b.Loop(); i++ {
				conn, err := l.Open("imaps", ip(fmt.Sprintf("192.0.2.%d", i%200)))
				if err != nil {
					b.Fatal(err)
				}
				u := user(b, fmt.Sprintf("user%d", i%1000))
				if err := conn.BeginLogin(b.Context(), u); err != nil {
					b.Fatal(err)
				}
				if err := conn.BeginSession(b.Context(), u); err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
			b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu returns the CPU time of this process, without that of Redis.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
