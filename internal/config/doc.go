// Package config reads the gateway's one YAML file. It returns a Config that is
// complete and valid, or all problems, each with file, line, column and what was
// expected.
//
// Each package declares its own settings, with defaults, bounds and documentation in the
// struct tags that package settings describes. Config composes them: the strict decoder,
// the checks that involve several keys and docs/CONFIG.md follow from the tags. Secrets are
// read here, from files or the environment, and never appear in an error. The package does
// not open certificates or connect to anything; only cmd imports it and passes the parts on.
package config

//go:generate go test . -run TestReferenceIsCurrent -update
