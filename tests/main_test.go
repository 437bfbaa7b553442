package tests

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
)

// TestMain keeps go-redis, which has one logger for the process, from printing a
// line for every connection that a test refuses. Started by a test as a stub
// backend or as a crowd of clients, the program is only that.
func TestMain(m *testing.M) {
	if files := os.Getenv(stubEnv); files != "" {
		if err := stubMain(files); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if orders := os.Getenv(loadSpecEnv); orders != "" {
		if err := loadgenMain(orders); err != nil {
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
