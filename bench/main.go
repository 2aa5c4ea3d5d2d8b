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
	pairs    int           // how often a pair takes turns
	duration time.Duration // of one measurement
}

// section is a part of the table.
type section struct {
	name string
	run  func(context.Context, *bench) error
}

// bench is what the sections share: the rows of the table.
type bench struct {
	options
	rows []row
}

func main() {
	var o options
	flag.StringVar(&o.only, "only", "", "comma-separated sections (append, http, replay, verify); empty: all")
	flag.IntVar(&o.pairs, "pairs", 9, "how often a pair takes turns")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "length of one measurement")
	bare := flag.Int("bare", 0, "serve a bare route with an answer of this size, and nothing else (the bench starts itself with it)")
	flag.Parse()
	if *bare > 0 {
		if err := serveBare(*bare); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	b := &bench{options: o}
	for _, s := range []section{
		{"append", benchAppend},
		{"http", benchHTTP},
		{"replay", benchReplay},
		{"verify", benchVerify},
	} {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), s.name) {
			continue
		}
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	b.print(os.Stdout)
	return nil
}
