package main

import (
	"time"

	"imapgate/internal/duration"
)

// durationFlag is a duration flag that accepts days and weeks.
type durationFlag time.Duration

// Set implements pflag.Value.
func (f *durationFlag) Set(text string) error {
	d, err := duration.Parse(text)
	if err == nil {
		*f = durationFlag(d)
	}
	return err
}

// String implements pflag.Value.
func (f *durationFlag) String() string { return duration.Format(time.Duration(*f)) }

// Type implements pflag.Value.
func (f *durationFlag) Type() string { return "duration" }
