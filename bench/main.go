package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command's flags.
type options struct {
	only     string        // comma-separated sections; empty: all
	rounds   int           // how often things that are compared take turns
	duration time.Duration // of one measurement
	full     bool          // with ten million keys
	plots    string        // folder to write plots to; empty: none
}

// bench is what the sections share: the options and the table.
type bench struct {
	options
	rows   []row
	curves curves
}

var sections = []string{"append", "http", "replay", "keys", "index", "verify", "embedded"}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "comma-separated sections ("+strings.Join(sections, ", ")+"); empty: all")
	flag.IntVar(&o.rounds, "rounds", 9, "how often things that are compared take turns")
	flag.DurationVar(&o.duration, "duration", time.Second, "length of one measurement")
	flag.BoolVar(&o.full, "full", false, "with ten million keys as well, which takes some minutes more and some 6 GB of disk")
	flag.StringVar(&o.plots, "plots", "", "folder to write plots (SVG) to, such as docs/plots")
	child := flag.String("child", "", "the part to be in a process of its own (the bench starts itself with it)")
	flag.Parse()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *child != "" {
		err = runChild(ctx, *child, flag.Args())
	} else {
		err = run(ctx, o)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	b := &bench{options: o}
	if o.only != "" {
		for name := range strings.SplitSeq(o.only, ",") {
			if !slices.Contains(sections, name) {
				return fmt.Errorf("there is no section %q", name)
			}
		}
	}
	var failed error
	for _, s := range []struct {
		names []string
		run   func(context.Context, *bench) error
	}{
		{[]string{"append"}, benchAppend},
		{[]string{"http"}, benchHTTP},
		{[]string{"replay"}, benchReplay},
		{[]string{"keys", "index", "verify"}, benchKeys},
		{[]string{"embedded"}, benchEmbedded},
	} {
		if !slices.ContainsFunc(s.names, b.wants) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			failed = fmt.Errorf("%s: %w", s.names[0], err)
			break
		}
	}
	// What was measured before a failure is not thrown away.
	b.print(os.Stdout)
	if o.plots != "" {
		failed = errors.Join(failed, b.curves.write(o.plots))
	}
	return failed
}

// wants says whether a section was asked for.
func (b *bench) wants(section string) bool {
	return b.only == "" || slices.Contains(strings.Split(b.only, ","), section)
}

// runChild is one part of the bench in a process of its own, so that it has a
// runtime and a scheduler to itself, as the server has.
func runChild(ctx context.Context, name string, arguments []string) error {
	switch name {
	case "bare":
		return serveBare(arguments)
	case "lookup":
		return serveLookup(ctx, arguments, false)
	case "update":
		return serveLookup(ctx, arguments, true)
	case "redis":
		return serveRedis(arguments)
	case "index":
		return measureIndex(ctx, arguments)
	case "embedded":
		return measureEmbedded(ctx, arguments)
	}
	return fmt.Errorf("there is no part %q", name)
}
