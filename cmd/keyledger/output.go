package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"keyledger/internal/config"
)

// say writes a line of prose to standard error.
func (p *program) say(format string, arguments ...any) {
	fmt.Fprintf(p.stderr, format+"\n", arguments...)
}

// print writes data to standard output. Data that nobody has got is a failure.
func (p *program) print(format string, arguments ...any) error {
	if _, err := fmt.Fprintf(p.stdout, format, arguments...); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// printJSON writes one line of JSON.
func (p *program) printJSON(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	return p.print("%s\n", text)
}

// printTable writes columns.
func (p *program) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return fmt.Errorf("write to standard output: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// confirm asks a person before something is done that cannot be undone.
func (p *program) confirm(question string) error {
	switch {
	case p.config.Yes:
		return nil
	case !isTerminal(p.stdin):
		return usageError{fmt.Errorf("%s Say --yes: there is nobody here to ask", question)}
	}
	fmt.Fprintf(p.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was changed")
}

// newLogger writes logs to standard error: text for people, JSON for programs. Of
// what goes on below a command that a person waits for, only what needs attention
// is shown, unless more was asked for.
func (p *program) newLogger(server bool) *slog.Logger {
	terminal := isTerminal(p.stderr)
	level := p.config.LogLevel
	if !server && level == slog.LevelInfo {
		level = slog.LevelWarn
	}
	if p.config.LogFormat == config.LogJSON || p.config.LogFormat == config.LogAuto && !terminal && server {
		return slog.New(slog.NewJSONHandler(p.stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: readable}))
	}
	return slog.New(tint.NewTextHandler(p.stderr, &tint.Options{
		Level: level, TimeFormat: time.TimeOnly + ".000", NoColor: !terminal || p.isSet("NO_COLOR"),
	}))
}

// readable writes durations with their unit, where JSON would have a number of
// nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// isSet says whether a variable that is no setting is set. An empty one is not.
func (p *program) isSet(name string) bool {
	return slices.ContainsFunc(p.environ, func(pair string) bool {
		value, ok := strings.CutPrefix(pair, name+"=")
		return ok && value != ""
	})
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
