package config

import (
	_ "embed"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"reflect"
	"slices"
	"strings"

	"github.com/caarlos0/env/v11"
	"github.com/spf13/pflag"
)

//go:embed config.go
var source string

// Setting is one field of Config.
type Setting struct {
	Field    string // its name in Config
	Variable string // KEYLEDGER_DATA_DIR
	Flag     string // data-dir
	Default  string
	Manual   string // the field's comment
	Secret   bool   // may stand in a file
	kind     string // what --help calls the value; empty for a switch
}

// Settings are all settings, in the order of Config.
func Settings() []Setting {
	comments := comments()
	var settings []Setting
	for field := range reflect.TypeFor[Config]().Fields() {
		s := Setting{
			Field: field.Name, Variable: field.Tag.Get("env"), Default: field.Tag.Get("envDefault"), Manual: comments[field.Name],
			Secret: field.Type == reflect.TypeFor[Secret]() || field.Type == reflect.TypeFor[URL](), kind: kindOf(field.Type),
		}
		s.Flag = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.Variable, ourPrefix), "_", "-"))
		settings = append(settings, s)
	}
	return settings
}

// comments reads the fields' comments from the source of Config.
func comments() map[string]string {
	texts := map[string]string{}
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return texts // it compiled
	}
	ast.Inspect(file, func(node ast.Node) bool {
		if field, ok := node.(*ast.Field); ok && len(field.Names) == 1 {
			texts[field.Names[0].Name] = strings.Join(strings.Fields(field.Doc.Text()), " ")
		}
		return true
	})
	return texts
}

func kindOf(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[URL]():
		return "url"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[Networks]():
		return "networks"
	case reflect.TypeFor[slog.Level]():
		return "level"
	}
	switch t.Kind() {
	case reflect.Bool:
		return ""
	case reflect.Int64:
		return "duration"
	case reflect.Int, reflect.Uint32:
		return "number"
	case reflect.Slice:
		return "list"
	}
	return "text"
}

// Register gives a command the flags of these names. A name that no setting has
// is a fault of the program.
func Register(flags *pflag.FlagSet, names ...string) {
	settings := Settings()
	for _, name := range names {
		i := slices.IndexFunc(settings, func(s Setting) bool { return s.Flag == name })
		if i < 0 {
			panic(fmt.Sprintf("config: there is no setting --%s", name))
		}
		s := settings[i]
		f := flags.VarPF(&value{text: s.Default, kind: s.kind}, name, "", s.usage())
		if s.kind == "" {
			f.NoOptDefVal = "true"
		}
	}
}

func (s Setting) usage() string {
	variables := "$" + s.Variable
	if s.Secret {
		variables += " or $" + s.Variable + fileSuffix
	}
	return strings.TrimSuffix(s.Manual, ".") + " [" + variables + "]"
}

// value keeps a flag's text. What it means is decided in Load.
type value struct{ text, kind string }

func (v *value) String() string { return v.text }

func (v *value) Set(text string) error {
	v.text = text
	return nil
}

func (v *value) Type() string {
	if v.kind == "" {
		return "bool"
	}
	return v.kind
}

// Changed are the settings that differ from their defaults, for the log. Secrets
// are masked by their types.
func (c Config) Changed() []slog.Attr {
	var defaults Config
	if err := env.ParseWithOptions(&defaults, env.Options{Environment: map[string]string{}, FuncMap: parsers()}); err != nil {
		return nil // a test holds the defaults
	}
	var attrs []slog.Attr
	is, was := reflect.ValueOf(c), reflect.ValueOf(defaults)
	for _, s := range Settings() {
		field := is.FieldByName(s.Field)
		if reflect.DeepEqual(field.Interface(), was.FieldByName(s.Field).Interface()) {
			continue
		}
		attrs = append(attrs, slog.String(s.Flag, fmt.Sprint(reflect.Indirect(field).Interface())))
	}
	return attrs
}
