// Package asyncapitest holds real messages against api/asyncapi.yaml. It is test support.
package asyncapitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"keyledger/api"
)

// Document is the document, ready to be compared with.
type Document struct {
	whole    map[string]any
	compiler *jsonschema.Compiler
	channels []channel
}

type channel struct {
	address string
	subject *regexp.Regexp
	names   []string // of its messages
}

const location = "asyncapi.json"

// Read reads the document, and fails the test when it is not one.
func Read(t testing.TB) *Document {
	t.Helper()
	var parsed any
	if err := yaml.Unmarshal(api.AsyncAPI, &parsed); err != nil {
		t.Fatal(err)
	}
	// Through JSON, so that numbers are what the schemas expect.
	text, err := json.Marshal(parsed)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	d := &Document{whole: whole.(map[string]any), compiler: jsonschema.NewCompiler()}
	d.compiler.DefaultDraft(jsonschema.Draft7)
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource(location, whole); err != nil {
		t.Fatal(err)
	}
	parameter := regexp.MustCompile(`\\\{\w+\\\}`)
	for _, value := range d.at("channels") {
		c := value.(map[string]any)
		address, _ := c["address"].(string)
		if address == "" {
			continue // a reply's
		}
		pattern := parameter.ReplaceAllString(regexp.QuoteMeta(address), `[^.]+`)
		d.channels = append(d.channels, channel{address, regexp.MustCompile("^" + pattern + "$"), slices.Collect(maps.Keys(c["messages"].(map[string]any)))})
	}
	return d
}

func (d *Document) at(path ...string) map[string]any {
	at := d.whole
	for _, name := range path {
		at, _ = at[name].(map[string]any)
	}
	return at
}

// Addresses are the subjects of all channels, with their parameters.
func (d *Document) Addresses() (addresses []string) {
	for _, c := range d.channels {
		addresses = append(addresses, c.address)
	}
	return addresses
}

// Headers are those that every event must have.
func (d *Document) Headers() (names []string) {
	for _, name := range d.at("components", "schemas", "headers")["required"].([]any) {
		names = append(names, name.(string))
	}
	slices.Sort(names)
	return names
}

// Check is Compare for a test; it gives the message's type.
func (d *Document) Check(t testing.TB, what string, message *nats.Msg) string {
	t.Helper()
	name, err := d.Compare(message)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return name
}

// Compare finds the channel of an event and says in which respect its message is not as described.
func (d *Document) Compare(message *nats.Msg) (name string, err error) {
	for _, c := range d.channels {
		if !c.subject.MatchString(message.Subject) {
			continue
		}
		for _, name := range c.names {
			if err := d.compareHeaders(name, message.Header); err != nil {
				return name, err
			}
			if err := d.ComparePayload(name, message.Data); err != nil {
				return name, err
			}
			described, _ := d.at("components", "messages", name)["name"].(string)
			return described, nil
		}
	}
	return "", fmt.Errorf("the subject %s is in no channel", message.Subject)
}

func (d *Document) compareHeaders(message string, header nats.Header) error {
	values, known := map[string]any{}, d.at("components", "schemas", "headers", "properties")
	for name, v := range header {
		if _, ok := known[name]; !ok {
			return fmt.Errorf("the header %s is not described", name)
		}
		values[name] = v[0]
	}
	return d.validate(values, "components", "messages", message, "headers")
}

// ComparePayload holds a payload against a message's schema. Unlike a subscriber,
// it also refuses fields that are not described.
func (d *Document) ComparePayload(message string, data []byte) error {
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("the payload is no JSON: %w", err)
	}
	if fields, ok := value.(map[string]any); ok {
		known := d.at("components", "messages", message, "payload", "properties")
		for name := range fields {
			if _, ok := known[name]; !ok {
				return fmt.Errorf("the field %s is not described", name)
			}
		}
	}
	return d.validate(value, "components", "messages", message, "payload")
}

func (d *Document) validate(value any, path ...string) error {
	schema, err := d.compiler.Compile(location + "#/" + strings.Join(path, "/"))
	if err != nil {
		return fmt.Errorf("the document's schema %s: %w", strings.Join(path, "."), err)
	}
	return schema.Validate(value)
}
