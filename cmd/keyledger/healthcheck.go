package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"keyledger/internal/datadir"
	"keyledger/internal/probe"
)

const healthcheckWithin = 4 * time.Second

func (p *program) healthcheck() *cobra.Command {
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Say by the exit code whether the server is ready",
		Long: `Ask /readyz of the server that --listen names, else of the one that runs on the data
directory, else of the default address. The exit code is 0 when it is ready and 1
when it is not. For containers.`,
	}
	return p.command(cmd, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, healthcheckWithin)
		defer cancel()
		url, err := p.serverURL(cmd.Flags().Changed("listen"))
		if err != nil {
			return err
		}
		if err := probe.At(url).Ready(ctx); err != nil {
			return err
		}
		p.say("%s is ready", url)
		return nil
	}, []string{"listen", "data-dir", "tls-cert", "tls-key"})
}

// serverURL is where the server is that this command is about.
func (p *program) serverURL(listenGiven bool) (string, error) {
	if !listenGiven && !p.isSet("KEYLEDGER_LISTEN") && !p.isSet("PORT") {
		if endpoints, err := datadir.At(p.config.DataDir).ReadEndpoints(); err == nil {
			return endpoints.HTTP, nil
		}
	}
	return probe.URL(p.config.Listen, p.config.TLSCert != "")
}
