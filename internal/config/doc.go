// Package config reads the gateway's one YAML file into a Config that is
// complete and valid, or says everything that is wrong with it, each with file,
// line, column and what was expected.
//
// The struct tags in config.go are the single list of keys: defaults, bounds,
// the strict decoder and docs/CONFIG.md all come from them. Secrets are read here,
// from files or the environment, and never appear in an error. The package does
// not open certificates, connect to anything, or know what the rooms do with
// their part; only cmd imports it and hands the parts out.
package config

//go:generate go test . -run TestReferenceIsCurrent -update
