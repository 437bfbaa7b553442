package tests

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestMain runs the program as a stub backend or a load generator if a test has started it
// as one. Otherwise it runs the tests. It silences go-redis, whose process-wide logger
// prints a line for every refused connection.
func TestMain(m *testing.M) {
	if files := os.Getenv(stubEnv); files != "" {
		if err := stubMain(files); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if spec := os.Getenv(loadSpecEnv); spec != "" {
		if err := loadgenMain(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	redis.SetLogger(discardLogger{})
	status := m.Run()
	if dir := buildDir.Load(); dir != nil {
		_ = os.RemoveAll(*dir)
	}
	os.Exit(status)
}

type discardLogger struct{}

// Printf implements the interface of redis.SetLogger.
func (discardLogger) Printf(context.Context, string, ...any) {}
