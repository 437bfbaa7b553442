package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/settings"
)

const referencePath = "../../docs/CONFIG.md"

var update = flag.Bool("update", false, "write docs/CONFIG.md")

// fileEffects describes the effect of a change to a file that a key names, by the word in
// the key's tag file. Constant.
var fileEffects = map[string]string{
	"tls":     "it is reloaded; new connections use it",
	"secret":  "it is reloaded and used from then on",
	"users":   "it is reloaded; new logins are verified with it",
	"restart": "the log reports that a restart is needed",
	"own":     "only the gateway writes it",
}

// TestReferenceIsCurrent compares docs/CONFIG.md with the struct tags.
func TestReferenceIsCurrent(t *testing.T) {
	want := renderReference(t)
	if *update {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/CONFIG.md is stale: run go generate ./internal/config")
	}
}

func TestTheReferenceNamesEveryVariable(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	text, found := renderReference(t), 0
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, quoted := range regexp.MustCompile(`"IMAPGATE_[A-Z_]+"`).FindAllString(string(source), -1) {
			found++
			if name := strings.Trim(quoted, `"`); !strings.Contains(text, "| `"+name) {
				t.Errorf("%s reads %s, which is not in the table", file, name)
			}
		}
	}
	if found < 5 {
		t.Errorf("only %d variables were found", found)
	}
}

// renderReference returns the text of docs/CONFIG.md.
func renderReference(t *testing.T) string {
	sample, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(`<!-- Generated from internal/config by go generate; change the struct tags there. -->
# Configuration

The configuration is one YAML file. It is read strictly: an unknown key, a wrong type or a bad value is an error that names
file, line, column and what was expected. All errors are reported at once. Check a file with

    imapgate check --config /etc/imapgate.yaml

Keys may be omitted, and then have their default, but must not be empty. Anchors, aliases and tags are not
supported. Durations are numbers with a unit: 300ms, 30s, 5m, 24h, 7d, 2w. Networks are written
10.0.0.0/8 or 2001:db8::/32, single addresses without a length.

This file never contains secrets. They come from files, named by keys that end in ` + "`_file`" + `, or from the
environment. Only its owner and group may have access to a secret's file (Docker's secrets: set ` + "`mode: 0440`" + `).
It has one line; a newline at its end is ignored.

| variable | instead of |
|---|---|
| ` + "`IMAPGATE_REDIS_PASSWORD` | `redis.password_file`" + ` |
| ` + "`IMAPGATE_REDIS_SENTINEL_PASSWORD` | `redis.sentinel_password_file`" + ` |
| ` + "`IMAPGATE_MASTER_PASSWORD_<BACKEND>` | `backends.<backend>.master.password_file`; the name in capitals, `-` as `_`" + ` |
| ` + "`IMAPGATE_SCRAM_SECRET` | `auth.scram_secret_file`" + ` |
| ` + "`IMAPGATE_OAUTH_CLIENT_SECRET` | `auth.oauth.client_secret_file`" + ` |
| ` + "`IMAPGATE_ADMIN_TOKEN` | `admin.token_file`" + ` |

## Files

Every file named here is watched; no signal is needed. A change is noticed within a second or two, or within half a minute on
file systems that do not notify. An unusable file is logged once as an error, by name. Until it is usable again, the last good
content stays in use. Only the system's own CAs are read once, at the start.

| key | when its file changes |
|---|---|
` + renderFileTable() + `
A sample file:

` + "```yaml\n" + string(sample) + "```\n")
	writeBlock(&b, reflect.TypeFor[Config](), "")
	return b.String()
}

// renderFileTable lists the keys that name files, with the effect of a change to the file.
func renderFileTable() string {
	var b strings.Builder
	for _, f := range fileKeys(reflect.TypeFor[Config](), "") {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f.Name, fileEffects[f.FileEffect])
	}
	return b.String()
}

// fileKeys returns the keys that have a file tag, with their full names.
func fileKeys(block reflect.Type, key string) (list []settings.Field) {
	for _, f := range settings.Fields(block) {
		f.Name = strings.TrimPrefix(key+"."+f.Name, ".")
		inner, suffix := f.Type, ""
		switch inner.Kind() {
		case reflect.Pointer:
			inner = inner.Elem()
		case reflect.Map:
			inner, suffix = inner.Elem(), ".<name>"
		case reflect.Slice:
			inner, suffix = inner.Elem(), "[]"
		}
		if f.FileEffect != "" {
			f.Name += suffix
			list = append(list, f)
		}
		if inner.Kind() == reflect.Struct && len(settings.Fields(inner)) > 0 {
			list = append(list, fileKeys(inner, f.Name+suffix)...)
		}
	}
	return list
}

// TestEveryFileKeyHasAnEffect finds the keys of files by their names and documentation.
func TestEveryFileKeyHasAnEffect(t *testing.T) {
	nameOfFile := regexp.MustCompile(`(^|_)(file|files|ca|cert|key|dir|path|snapshot)$`)
	docOfFile := regexp.MustCompile(`^(For https\. )?(A file|File|PEM file|A directory)`)
	var walk func(reflect.Type, string)
	found := 0
	walk = func(block reflect.Type, key string) {
		for _, f := range settings.Fields(block) {
			inner := f.Type
			for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Map || inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && len(settings.Fields(inner)) > 0 {
				walk(inner, key+"."+f.Name)
				continue
			}
			isFile := inner.Kind() == reflect.String && (nameOfFile.MatchString(f.Name) || docOfFile.MatchString(f.Doc))
			switch {
			case isFile && fileEffects[f.FileEffect] == "":
				t.Errorf("%s.%s names a file and has no file tag", key, f.Name)
			case !isFile && f.FileEffect != "":
				t.Errorf("%s.%s has a file tag, but neither its name nor its documentation is that of a file", key, f.Name)
			case isFile:
				found++
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
	if found < 20 {
		t.Errorf("only %d keys were found", found)
	}
}

// writeBlock writes the table of one block, then those of its inner blocks.
func writeBlock(b *strings.Builder, t reflect.Type, key string) {
	if key == "" {
		b.WriteString("\n## The blocks\n\n")
	} else {
		fmt.Fprintf(b, "\n## `%s`\n\n", key)
	}
	b.WriteString("| key | default | meaning |\n|---|---|---|\n")
	for _, f := range settings.Fields(t) {
		fmt.Fprintf(b, "| `%s` | %s | %s%s |\n", f.Name, defaultColumn(f, f.Type), f.Doc, rangeColumn(f))
	}
	for _, f := range settings.Fields(t) {
		inner, path := f.Type, f.Name
		if key != "" {
			path = key + "." + f.Name
		}
		switch inner.Kind() {
		case reflect.Pointer:
			inner = inner.Elem()
		case reflect.Map:
			inner, path = inner.Elem(), path+".<name>"
		case reflect.Slice:
			inner, path = inner.Elem(), path+"[]"
		}
		if inner.Kind() == reflect.Struct && len(settings.Fields(inner)) > 0 {
			writeBlock(b, inner, path)
		}
	}
}

func defaultColumn(f settings.Field, t reflect.Type) string {
	switch {
	case f.Format == "required" && f.DefaultText == "" || f.Format == "backend":
		return "required"
	case t.Kind() == reflect.Slice && f.HasDefault:
		return "`[" + strings.Join(strings.Fields(f.DefaultText), ", ") + "]`"
	case f.HasDefault:
		return "`" + f.DefaultText + "`"
	case t.Kind() == reflect.String:
		return "empty"
	}
	return ""
}

func rangeColumn(f settings.Field) string {
	var s string
	if len(f.OneOf) > 0 {
		s += " One of `" + strings.Join(f.OneOf, "`, `") + "`."
	}
	if len(f.Unsupported) > 0 {
		s += " Not available in this version: `" + strings.Join(f.Unsupported, "`, `") + "`."
	}
	if f.Max != "" {
		s += " From " + f.Min + " to " + f.Max + "."
	}
	if f.Example != "" {
		s += " Example: `" + f.Example + "`."
	}
	return s
}

// TestEveryKeyIsDocumentedAndDecodable walks the types: a key of a type that the
// decoder does not support would panic only when an operator writes it.
func TestEveryKeyIsDocumentedAndDecodable(t *testing.T) {
	var walk func(reflect.Type, string)
	walk = func(block reflect.Type, key string) {
		for _, f := range settings.Fields(block) {
			at := key + "." + f.Name
			if f.Name == "" || !strings.HasSuffix(f.Doc, ".") {
				t.Errorf("%s: name %q, doc %q", at, f.Name, f.Doc)
			}
			if len(f.OneOf) > 0 && f.HasDefault && !slices.Contains(f.OneOf, f.DefaultText) {
				t.Errorf("%s: default %q is not allowed", at, f.DefaultText)
			}
			inner := f.Type
			number := inner.Kind() == reflect.Int || inner == reflect.TypeFor[time.Duration]()
			if number && (f.Max == "" || f.Min == "" || !f.HasDefault) {
				t.Errorf("%s has no bounds or no default", at)
			}
			for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Map || inner.Kind() == reflect.Slice {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct && len(settings.Fields(inner)) > 0 {
				walk(inner, at)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
}
