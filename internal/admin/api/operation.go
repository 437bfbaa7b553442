package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// Operation is one request that operators send, and the types of what is sent and
// returned. A Request of type string is sent as a query parameter, None is not sent, and
// any other is the JSON body.
type Operation[Request, Response any] struct {
	Method, Path string
	Parameter    string // name of the query parameter
}

// None is the request of an operation that needs none.
type None struct{}

// Endpoint is the server's side of an operation.
type Endpoint struct {
	Method, Path string
	Serve        http.HandlerFunc
}

// Handle returns the endpoint at which call executes an operation. An error of call that
// is not ErrBadRequest means that the request may succeed later.
func Handle[Request, Response any](o Operation[Request, Response], call func(context.Context, Request) (Response, error)) Endpoint {
	return Endpoint{o.Method, o.Path, func(w http.ResponseWriter, r *http.Request) {
		var response Response
		request, err := o.decode(r)
		if err == nil {
			response, err = call(r.Context(), request)
		}
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		case errors.Is(err, ErrBadRequest):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(response) // an error means that the client has disconnected
		}
	}}
}

// decode returns the request that the client has sent.
func (o Operation[Request, Response]) decode(r *http.Request) (request Request, err error) {
	switch into := any(&request).(type) {
	case *None:
	case *string:
		values := r.URL.Query()[o.Parameter]
		if len(values) != 1 || values[0] == "" {
			return request, fmt.Errorf("%w: %s needs one value: %s?%[2]s=", ErrBadRequest, o.Parameter, o.Path)
		}
		*into = values[0]
	default:
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			return request, fmt.Errorf("%w: the body: %w", ErrBadRequest, err)
		}
		if d.More() {
			return request, fmt.Errorf("%w: the body has more than one value", ErrBadRequest)
		}
	}
	return request, nil
}

// NewRequest returns the request to the admin address host.
func (o Operation[Request, Response]) NewRequest(ctx context.Context, host string, request Request) (*http.Request, error) {
	target := url.URL{Scheme: "http", Host: host, Path: o.Path}
	var body []byte
	switch value := any(request).(type) {
	case None:
	case string:
		target.RawQuery = url.Values{o.Parameter: {value}}.Encode()
	default:
		var err error
		if body, err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, o.Method, target.String(), bytes.NewReader(body))
	if err == nil && body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, err
}
