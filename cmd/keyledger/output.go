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

// newLogger writes logs to standard error: text for people, JSON for programs.
func (p *program) newLogger() *slog.Logger {
	terminal := isTerminal(p.stderr)
	if p.config.LogFormat == config.LogJSON || p.config.LogFormat == config.LogAuto && !terminal {
		return slog.New(slog.NewJSONHandler(p.stderr, &slog.HandlerOptions{Level: p.config.LogLevel}))
	}
	return slog.New(tint.NewHandler(p.stderr, &tint.Options{
		Level: p.config.LogLevel, TimeFormat: time.TimeOnly + ".000", NoColor: !terminal || p.noColor(),
	}))
}

// noColor honours NO_COLOR (no-color.org): set to anything, it means no colours.
func (p *program) noColor() bool {
	return slices.ContainsFunc(p.environ, func(pair string) bool {
		return strings.HasPrefix(pair, "NO_COLOR=") && pair != "NO_COLOR="
	})
}

func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
