// Package config reads the gateway's one YAML file. It returns a Config that is
// complete and valid, or all problems, each with file, line, column and what was
// expected.
//
// The struct tags in config.go are the single list of keys: defaults, bounds, the
// strict decoder and docs/CONFIG.md come from them. Secrets are read here, from
// files or the environment, and never appear in an error. The package does not open
// certificates or connect to anything; only cmd imports it and passes the parts on.
package config

//go:generate go test . -run TestReferenceIsCurrent -update
