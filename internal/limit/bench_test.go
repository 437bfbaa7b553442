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

// BenchmarkLogin is what all limits cost a right login, from arrival to the end. A wait for
// Redis is no work: what counts is cpu-ns/op.
func BenchmarkLogin(b *testing.B) {
	for _, c := range []struct {
		name   string
		shared bool
	}{{"local", false}, {"shared", true}} {
		b.Run(c.name, func(b *testing.B) {
			cfg := usual()
			cfg.Connections = Connections{PerUserAddress: 1 << 20, PerUser: 1 << 20, PerAddress: 1 << 20, PreauthPerAddress: 1 << 20, Total: 1 << 20, NewPerMinute: 1 << 20, NewBurst: 1 << 20}
			var client redis.UniversalClient
			if c.shared {
				client = dial(b, testbed.StartRedis(b).Address)
			}
			g, err := New(cfg, client, Hooks{}, zap.NewNop())
			if err != nil {
				b.Fatal(err)
			}
			began := cpu(b)
			for i := 0; b.Loop(); i++ {
				v, err := g.Open("imaps", at(fmt.Sprintf("192.0.2.%d", i%200)))
				if err != nil {
					b.Fatal(err)
				}
				u := user(b, fmt.Sprintf("user%d", i%1000))
				if err := v.BeginLogin(b.Context(), u); err != nil {
					b.Fatal(err)
				}
				if err := v.BeginSession(b.Context(), u); err != nil {
					b.Fatal(err)
				}
				v.Close()
			}
			b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu is what this process has used, without Redis.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
