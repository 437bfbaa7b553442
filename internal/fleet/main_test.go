package fleet

import (
	"context"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestMain silences go-redis, which logs each connection that a test breaks.
func TestMain(m *testing.M) {
	redis.SetLogger(discardLogger{})
	os.Exit(m.Run())
}

type discardLogger struct{}

// Printf implements the interface of redis.SetLogger.
func (discardLogger) Printf(context.Context, string, ...any) {}
