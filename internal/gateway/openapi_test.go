package gateway

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/testkit"
)

//go:generate go test . -run TestTheOpenAPIDocumentIsCurrent -update

var update = flag.Bool("update", false, "write docs/openapi.json")

func TestTheOpenAPIDocumentIsCurrent(t *testing.T) {
	g := testkit.Must(Open(load(t, "audit: {path: ''}"), Options{Log: zap.NewNop()}))(t)
	defer g.Close()
	document := append(testkit.Must(admin.Document(g.operations()))(t), '\n')
	const file = "../../docs/openapi.json"
	if *update {
		testkit.NoError(t, os.WriteFile(file, document, 0o644))
		return
	}
	if current, err := os.ReadFile(file); err != nil || string(current) != string(document) {
		t.Errorf("docs/openapi.json is stale: run go generate ./internal/gateway (%v)", err)
	}
}
