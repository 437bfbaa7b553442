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
func newAPI(endpoints []api.Endpoint) http.Handler {
	mux := http.NewServeMux()
	server := describe(mux, endpoints)
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
	return server
}

// Document returns the OpenAPI document of operations, indented.
func Document(endpoints []api.Endpoint) ([]byte, error) {
	return json.MarshalIndent(describe(http.NewServeMux(), endpoints).OpenAPI(), "", "  ")
}
