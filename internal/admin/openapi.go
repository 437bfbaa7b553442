package admin

import (
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"imapgate/internal/admin/api"
)

// apiVersion is the version of the API in its document. It changes with what it offers.
const apiVersion = "1.0.0"

// newAPI returns the handler of all operations, and of the document that describes them.
func newAPI(deps Deps) http.Handler {
	mux := http.NewServeMux()
	server := describe(mux, deps.API)
	mux.HandleFunc("GET "+pathEvents, deps.serveEvents)
	document, err := server.OpenAPI().MarshalJSON()
	if err != nil {
		panic("admin: the API cannot be described: " + err.Error())
	}
	mux.HandleFunc("GET "+pathOpenAPI, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(document) // an error means that the client has disconnected
	})
	return mux
}

// describe adds the operations to mux.
func describe(mux *http.ServeMux, endpoints []api.Endpoint) huma.API {
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "imapgate", Version: apiVersion,
				Description: "What operators see and change. Times are RFC 3339 in UTC, durations numbers of seconds. Errors are problems of RFC 9457.",
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}},
			},
		},
		Formats: map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat}, DefaultFormat: "application/json",
	}
	server := humago.New(mux, config)
	for _, add := range endpoints {
		add(server)
	}
	server.OpenAPI().AddOperation(eventsOperation())
	return server
}

// eventsOperation describes what serveEvents does.
func eventsOperation() *huma.Operation {
	o := &huma.Operation{
		Method: http.MethodGet, Path: pathEvents, OperationID: "follow-events", Summary: "Audit records of this gateway as they happen, as server-sent events",
		Description: "The data of each event is one record. A reader that is too slow loses records: an event named lost says how many.",
		Security:    []map[string][]string{{"token": {}}},
		Responses:   map[string]*huma.Response{"200": {Description: "An endless stream.", Content: map[string]*huma.MediaType{"text/event-stream": {}}}},
	}
	for _, name := range eventFilters {
		o.Parameters = append(o.Parameters, &huma.Param{Name: name, In: "query", Schema: &huma.Schema{Type: huma.TypeString}})
	}
	return o
}

// Document returns the OpenAPI document of operations, indented.
func Document(endpoints []api.Endpoint) ([]byte, error) {
	return json.MarshalIndent(describe(http.NewServeMux(), endpoints).OpenAPI(), "", "  ")
}
