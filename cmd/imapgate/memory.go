package main

import (
	"errors"
	"math"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
)

// memoryRatio is the share of the control group's limit for the Go runtime. Near it
// the collector works harder, before the kernel kills the process.
const memoryRatio = 0.8

// limitMemory makes the collector respect the lowest memory limit of the process's
// control group and its parents, unless GOMEMLIMIT is set, and logs the limit.
func limitMemory(log *zap.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported): // no limit
	case err != nil:
		log.Warn("memory limit of the control group is unknown; GOMEMLIMIT sets one", zap.Error(err))
	case limit < math.MaxInt64:
		log.Info("memory limit", zap.Int64("bytes", limit))
	}
}
