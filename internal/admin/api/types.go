package api

import (
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Time is a point in time, in JSON as RFC 3339 in UTC, to the second. The zero Time is null.
type Time struct{ time.Time }

// Schema implements huma.SchemaProvider.
func (Time) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Nullable: true}
}

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return t.UTC().Truncate(time.Second).MarshalJSON()
}

// Page is the part of a list that is wanted.
type Page struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"The most entries of the response."`
	Cursor string `query:"cursor" maxLength:"256" doc:"Where to go on: next of the previous response."`
}
