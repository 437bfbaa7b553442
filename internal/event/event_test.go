package event

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// constants returns the constants of words.go as the Go parser reads them, by their types.
func constants(t *testing.T) map[string][]*ast.ValueSpec {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "words.go", nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	bySet := map[string][]*ast.ValueSpec{}
	for _, d := range f.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok || decl.Tok != token.CONST || !decl.Lparen.IsValid() {
			continue
		}
		for _, s := range decl.Specs {
			spec := s.(*ast.ValueSpec)
			set := spec.Type.(*ast.Ident).Name
			bySet[set] = append(bySet[set], spec)
		}
	}
	return bySet
}

// text returns a word in the form of its comment.
func (w Word) text() string {
	if w.Tags == "" {
		return w.Meaning
	}
	return strings.TrimSpace(w.Tags + ": " + w.Meaning)
}

func TestEveryConstantIsAWord(t *testing.T) {
	all := constants(t)
	if got, want := slices.Sorted(maps.Keys(sets)), slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
		t.Fatalf("the sets are %q, want %q", got, want)
	}
	for set, specs := range all {
		if len(sets[set]) != len(specs) || len(index[set]) != len(specs) {
			t.Fatalf("%s has %d words, %d different; want %d", set, len(sets[set]), len(index[set]), len(specs))
		}
		for i, spec := range specs {
			value, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			w, comment := sets[set][i], strings.TrimSpace(spec.Comment.Text())
			if w.Value != value || w.text() != comment {
				t.Errorf("%s: %+v, want %s: %s", set, w, value, comment)
			}
		}
	}
}

func TestWordsHaveTagsAndMeanings(t *testing.T) {
	for _, c := range []struct {
		set  string
		want Word
	}{
		{"Reason", Word{"user_paused", "unavailable", "the route's state is paused: try again later"}},
		{"Reason", Word{"backend_protocol", "unavailable session bye", "its answer was invalid IMAP, or not allowed in that state"}},
		{"Reason", Word{"client_logout", "session", ""}},
		{"Reason", Word{"preauth_timeout", "", ""}},
		{"Limit", Word{"banned", "refusal", "a ban; it has no number"}},
		{"BanReason", Word{"merged", "", "too many bans to keep: a larger network replaces some of them"}},
		{"PinReason", Word{"context", "", "RFC 5267: the backend updates a search"}},
	} {
		if got := index[c.set][c.want.Value]; got != c.want {
			t.Errorf("%+v, want %+v", got, c.want)
		}
	}
}
