package http

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"keyledger/domain"
)

// dialect is how one kind of client is spoken to, where that differs from the others.
type dialect struct {
	problemType string // content type of errors
	// organization reads the id in the path.
	organization func(text string) (domain.OrganizationID, error)
	// failure gives an error's status and body. It is the only place where a dialect
	// maps errors, and its switch is the error table of the contract.
	failure func(e *domain.Error) (status int, body []byte)
}

// nativeResources are our own below /organizations/{id}, beside BunShip's.
var nativeResources = []string{"keys", "audit-log", "events", "webhooks"}

// dialectOf gives the dialect that a path belongs to, whether or not it exists.
func dialectOf(path string) *dialect {
	rest, ok := strings.CutPrefix(path, "/api/v1/")
	if !ok {
		return native
	}
	parts := strings.SplitN(rest, "/", 4)
	switch parts[0] {
	case "organization":
		return bullseye
	case "organizations":
		if len(parts) < 3 || !slices.Contains(nativeResources, parts[2]) {
			return bunship
		}
	}
	return native
}

// sentence says what is wrong, with the field in front when there is one.
func sentence(e *domain.Error) string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + " " + e.Message
}

func trimComma(body []byte) []byte { return bytes.TrimSuffix(body, []byte(",")) }

// creationFields is the body of a create request as it was sent. What is absent or
// null has its zero value.
type creationFields struct {
	name      string
	named     bool
	scopes    []string
	rateLimit uint32
	expiresAt time.Time
}

// readCreation reads the members of a create request that a dialect knows.
func readCreation(body []byte, known []string) (creationFields, error) {
	var f creationFields
	err := decodeObject(body, known, func(d *decoder, name string) error {
		null, err := d.null()
		if null || err != nil {
			return err
		}
		return f.read(d, name)
	})
	return f, err
}

// read reads a member that is not null.
func (f *creationFields) read(d *decoder, name string) (err error) {
	switch name {
	case "name":
		f.name, err = d.text(name)
		f.named = true
	case "scopes":
		f.scopes, err = d.texts(name)
	case "rateLimit":
		f.rateLimit, err = d.integer(name, domain.MostRateLimit)
	case "expiresAt":
		f.expiresAt, err = d.moment(name)
	}
	return err
}

// check turns the fields into what a key can be made of.
func (f creationFields) check() (creation, error) {
	if !f.named {
		return creation{}, domain.Invalid("name", "is required")
	}
	name, err := domain.ParseName(f.name)
	if err != nil {
		return creation{}, err
	}
	scopes, err := domain.ParseScopes(f.scopes)
	if err != nil {
		return creation{}, err
	}
	return creation{name: name, scopes: scopes, rateLimit: f.rateLimit, expiresAt: f.expiresAt}, nil
}
