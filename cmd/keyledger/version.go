package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	keyhttp "keyledger/http"
)

// version, commit and builtAt are set by a release: go build -ldflags "-X main.version=v1.2.3 ...".
// Otherwise the go command's own notes tell.
var version, commit, builtAt string

func (p *program) version() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Say which version this is"}
	return p.command(cmd, func(context.Context) error {
		v := buildVersion()
		if p.config.JSON {
			return p.printJSON(struct {
				Version string `json:"version"`
				Commit  string `json:"commit,omitempty"`
				BuiltAt string `json:"builtAt,omitempty"`
				Go      string `json:"go"`
			}{v.Version, v.Commit, v.BuiltAt, runtime.Version()})
		}
		return p.print("keyledger %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	}, []string{"json"})
}

// versionText is the version for people.
func versionText() string {
	v := buildVersion()
	if v.Commit == "" {
		return v.Version
	}
	return v.Version + " (" + v.Commit + ")"
}

// buildVersion says what is running: what a release has set, else what the go
// command has noted.
func buildVersion() keyhttp.Version {
	v := keyhttp.Version{Version: version, Commit: commit, BuiltAt: builtAt}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	var changed bool
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && v.Commit == "":
			v.Commit = s.Value
		case s.Key == "vcs.time" && v.BuiltAt == "":
			v.BuiltAt = s.Value
		case s.Key == "vcs.modified":
			changed = s.Value == "true"
		}
	}
	if changed && commit == "" && v.Commit != "" {
		v.Commit += " and changes"
	}
	return v
}
