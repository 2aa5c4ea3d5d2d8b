package eventstore_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"keyledger/eventstore"
)

var updatePage = flag.Bool("update-page", false, "write the tables of docs/events.md anew")

const (
	eventsPage  = "../docs/events.md"
	tablesBegin = "<!-- The tables are made by go test ./eventstore -run TestThePageListsEveryField -update-page -->\n"
	tablesEnd   = "<!-- Here they end. -->\n"
)

// What stands on the page about fields is made of the code: of what is written for the
// golden events, and of the comments in domain/event.go.
func TestThePageListsEveryField(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(eventsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), tablesBegin)
	_, after, ok2 := strings.Cut(rest, tablesEnd)
	if !ok || !ok2 {
		t.Fatal("the page has no place for the tables")
	}
	want := before + tablesBegin + tables(t) + tablesEnd + after
	if *updatePage {
		if err := os.WriteFile(eventsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(page) {
		t.Error("docs/events.md is not what the code says: run go test ./eventstore -run TestThePageListsEveryField -update-page")
	}
}

func tables(t *testing.T) string {
	t.Helper()
	comments := structComments(t)
	events := goldenEvents()
	var names []string
	for name := range events {
		if strings.HasSuffix(name, ".1") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		event := events[name]
		data, personal, err := eventstore.Encode(event)
		if err != nil {
			t.Fatal(err)
		}
		typ := comments[event.EventName()]
		fmt.Fprintf(&b, "\n**`%s`**, schema 1. %s\n\n| field | form | |\n|---|---|---|\n", event.EventName(), typ.text)
		optional := map[string]bool{}
		fields, absent := fieldsOf(t, data), map[string]bool{}
		for other, e := range events {
			if !strings.HasPrefix(other, name+".") {
				continue
			}
			bare, _, err := eventstore.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range fieldsOf(t, bare) {
				optional[f.name] = optional[f.name] || string(f.value) == "null"
				if !slices.ContainsFunc(fields, func(known field) bool { return known.name == f.name }) {
					fields, absent[f.name] = append(fields, f), true
				}
			}
		}
		for _, f := range fields {
			form := form(f.name, f.value)
			if optional[f.name] {
				form += " or null"
			}
			if absent[f.name] {
				form += ", or absent"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.name, form, typ.fields[goName(f.name)])
		}
		sealed, err := json.Marshal(personal)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fieldsOf(t, sealed) {
			fmt.Fprintf(&b, "| `%s`, sealed | text | %s |\n", f.name, typ.fields[goName(f.name)])
		}
	}
	return b.String() + "\n"
}

type field struct {
	name  string
	value json.RawMessage
}

// fieldsOf gives the fields of an object in their order.
func fieldsOf(t *testing.T, object []byte) []field {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	var fields []field
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		fields = append(fields, field{fmt.Sprint(name), value})
	}
	return fields
}

var (
	aTime = regexp.MustCompile(`^"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"$`)
	aUUID = regexp.MustCompile(`^"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"$`)
	aKey  = regexp.MustCompile(`^"key_[0-9A-Z]{26}"$`)
)

// form says how a value is written.
func form(name string, value json.RawMessage) string {
	switch {
	case value[0] == '[':
		var list []json.RawMessage
		if json.Unmarshal(value, &list) != nil || len(list) == 0 {
			return "list"
		}
		return "list of " + form(name, list[0])
	case value[0] == '{':
		return "object"
	case aTime.Match(value):
		return "time"
	case aUUID.Match(value):
		return "UUID"
	case aKey.Match(value):
		return "key id"
	case value[0] == '"':
		return "text"
	}
	return "number"
}

// goName is the field of the Go type, as a field of the data is called.
func goName(name string) string {
	switch name {
	case "keyId":
		return "Key"
	case "organizationId":
		return "Organization"
	case "waitedMs":
		return "Waited"
	case "keys", "outcomes", "counts":
		name = strings.TrimSuffix(name, "s")
		fallthrough
	case "first", "last", "decidedAt":
		return "Use." + strings.ToUpper(name[:1]) + name[1:]
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

type commented struct {
	text   string
	fields map[string]string
}

// structComments reads what domain/event.go says of its types and their fields.
func structComments(t *testing.T) map[string]commented {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../domain/event.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]commented{}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		for _, spec := range g.Specs {
			s := spec.(*ast.TypeSpec) //nolint:forcetypeassert // of a type declaration
			st, ok := s.Type.(*ast.StructType)
			if !ok {
				continue
			}
			c := commented{text: sentence(s.Name.Name, oneLine(g.Doc.Text())), fields: map[string]string{}}
			for _, f := range st.Fields.List {
				for _, n := range f.Names {
					c.fields[n.Name] = readable(n.Name, oneLine(f.Comment.Text()+f.Doc.Text()))
				}
			}
			all[s.Name.Name] = c
		}
	}
	for name, text := range all["Use"].fields {
		all["KeyUsed"].fields["Use."+name] = text
	}
	return all
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// sentence is a comment without the name that it begins with.
func sentence(name, text string) string {
	text = strings.TrimPrefix(strings.TrimPrefix(text, name+" "), "is ")
	return strings.ToUpper(text[:1]) + text[1:]
}

// readable says of the data what the comment says of Go's values.
func readable(name, text string) string {
	text = strings.TrimLeft(strings.TrimPrefix(text, "personal"), ";, ")
	if strings.HasPrefix(text, name+" ") {
		text = sentence(name, text)
	}
	return strings.NewReplacer("0: none", "null: none", "zero: never", "null: never").Replace(text)
}
