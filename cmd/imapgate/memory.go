package main

import (
	"errors"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
)

// memoryRatio of the control group's limit is for what the Go runtime holds. The
// collector works harder near it, before the kernel kills the process.
const memoryRatio = 0.8

// limitMemory makes the collector respect the lowest memory limit of the process's
// control group and those above it, unless GOMEMLIMIT is set, and logs what holds.
func limitMemory(log *zap.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported): // and so no limit
	case err != nil:
		log.Warn("memory limit of the control group is unknown; GOMEMLIMIT sets one", zap.Error(err))
	case limit < math.MaxInt64:
		log.Info("memory limit", zap.Int64("bytes", limit))
	}
}
