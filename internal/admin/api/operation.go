// Package api has the operations of the admin address: for each its method and path, its
// request and its response. The server, the commands that query it and the OpenAPI document
// follow from these types.
//
// Names in JSON are snake_case, times RFC 3339 (UTC), durations numbers of seconds. A list is
// never null. Errors are problems of RFC 9457.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Errors of a call, besides those that mean that it may succeed later.
var (
	// ErrBadRequest is an operator's mistake: a request that no gateway can execute. Its
	// text explains it.
	ErrBadRequest = errors.New("invalid request")
	// ErrNotFound means that there is no such session, route, backend or address.
	ErrNotFound = errors.New("not found")
	// ErrChanged means that the caller has not seen the latest state (If-Match).
	ErrChanged = errors.New("it has changed since it was read")
)

// MaxBody bounds the body of a request, in bytes; MaxImport that of an import of routes.
const (
	MaxBody   = 64 << 10
	MaxImport = 8 << 20
)

// bodyTimeout bounds the arrival of a body.
const bodyTimeout = 10 * time.Second

// Operation is one request of operators. Input is a struct with the tags of package huma:
// path, query and header parameters, and Body. Output is the body of the response.
type Operation[Input, Output any] struct {
	Method, Path string
	ID           string // operationId
	Summary      string
	MaxBody      int64 // 0: MaxBody
}

// None is the input of an operation without parameters, and the output of one without a body.
type None struct{}

// Endpoint adds an operation to a server.
type Endpoint func(huma.API)

// response is a response with its body.
type response[Output any] struct {
	ETag string `header:"ETag"`
	Body Output
}

// versioned is an output with a version, which the header ETag carries.
type versioned interface{ Version() string }

// Handle returns the endpoint at which call executes an operation.
func (o Operation[Input, Output]) Handle(call func(context.Context, *Input) (Output, error)) Endpoint {
	operation := huma.Operation{
		Method: o.Method, Path: o.Path, OperationID: o.ID, Summary: o.Summary, MaxBodyBytes: MaxBody, BodyReadTimeout: bodyTimeout,
		RejectUnknownQueryParameters: true, Security: []map[string][]string{{"token": {}}},
	}
	if o.MaxBody > 0 {
		operation.MaxBodyBytes = o.MaxBody
	}
	return func(server huma.API) {
		huma.Register(server, operation, func(ctx context.Context, input *Input) (*response[Output], error) {
			output, err := call(ctx, input)
			if err != nil {
				return nil, problem(err)
			}
			r := &response[Output]{Body: output}
			if v, ok := any(output).(versioned); ok && v.Version() != "" {
				r.ETag = `"` + v.Version() + `"`
			}
			return r, nil
		})
	}
}

// problem returns the response to a call that has failed.
func problem(err error) error {
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, ErrBadRequest):
		status = http.StatusBadRequest
	case errors.Is(err, ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, ErrChanged):
		status = http.StatusPreconditionFailed
	}
	return huma.NewError(status, err.Error())
}

// NewRequest returns the request for input to a server, such as https://host:9143.
func (o Operation[Input, Output]) NewRequest(ctx context.Context, server string, input *Input) (*http.Request, error) {
	target, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	e := encoder{path: o.Path, query: url.Values{}, header: http.Header{}}
	if err := e.encode(reflect.ValueOf(input).Elem()); err != nil {
		return nil, err
	}
	// The path is set in its escaped form too: a name may contain a slash.
	unescaped, err := url.PathUnescape(e.path)
	if err != nil {
		return nil, err
	}
	target.Path, target.RawPath, target.RawQuery = unescaped, e.path, e.query.Encode()
	r, err := http.NewRequestWithContext(ctx, o.Method, target.String(), bytes.NewReader(e.body))
	if err != nil {
		return nil, err
	}
	r.Header = e.header
	if o.Method != http.MethodGet {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, nil
}

// encoder encodes an Input by its tags.
type encoder struct {
	path   string
	query  url.Values
	header http.Header
	body   []byte
}

func (e *encoder) encode(input reflect.Value) error {
	for i := range input.NumField() {
		field, value := input.Type().Field(i), input.Field(i)
		name := func(tag string) string {
			name, _, _ := strings.Cut(field.Tag.Get(tag), ",")
			return name
		}
		switch {
		case field.Anonymous:
			if err := e.encode(value); err != nil {
				return err
			}
		case field.Name == "Body":
			body, err := json.Marshal(value.Interface())
			if err != nil {
				return err
			}
			e.body = body
		case name("path") != "":
			e.path = strings.ReplaceAll(e.path, "{"+name("path")+"}", url.PathEscape(fmt.Sprint(value.Interface())))
		case value.IsZero():
		case name("query") != "":
			e.query.Set(name("query"), fmt.Sprint(value.Interface()))
		case name("header") != "":
			e.header.Set(name("header"), fmt.Sprint(value.Interface()))
		}
	}
	return nil
}

// Role is what a caller may do.
type Role string

// Roles.
const (
	Viewer   Role = "viewer"   // may read
	Operator Role = "operator" // may read and change
)

// Caller is who sends a request.
type Caller struct {
	Name string // of the token, or "uid N" of the socket's peer
	Role Role
}

// callerKey is the key of the Caller in a request's context.
type callerKey struct{}

// WithCaller returns ctx with the caller of the request.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns the caller of a request; the zero Caller if the server has set none.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
