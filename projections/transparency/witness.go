package transparency

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/domain"
	"keyledger/eventstore"
)

// Witness is a witness that checkpoints are sent to.
type Witness struct {
	WitnessKey
	URL string // the submission prefix
}

// ParseWitness reads name+hash+key=URL.
func ParseWitness(text string) (Witness, error) {
	key, prefix, found := strings.Cut(text, "=") // 33 bytes as base64 have no padding
	w, err := ParseWitnessKey(key)
	if err != nil {
		return Witness{}, err
	}
	u, err := url.Parse(prefix)
	if !found || err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return Witness{}, fmt.Errorf("a witness is name+hash+key=URL, such as witness.example+2f0c...+BAAx...=https://witness.example/add")
	}
	return Witness{WitnessKey: w, URL: strings.TrimSuffix(prefix, "/")}, nil
}

// CosignerOptions are what a Cosigner needs.
type CosignerOptions struct {
	Pool     *pgxpool.Pool
	Lane     domain.Lane
	Witness  Witness
	Interval time.Duration // at most one submission in it; 1 s by default

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: no metrics
}

// Cosigner has one witness cosign the checkpoints of one lane. It runs behind the tree and
// delays nothing. Where several nodes run, each asks: a witness gives the same answer twice.
type Cosigner struct {
	CosignerOptions
	reader *Reader
	client *http.Client
	size   prometheus.Gauge
	origin Origin
	old    domain.Position // the size of the last checkpoint that the witness has, as far as it is known
}

const (
	witnessWithin    = 10 * time.Second
	mostWitnessBytes = 16 << 10
	mostWitnessWait  = 5 * time.Minute
)

// NewCosigner makes a cosigner. It asks nobody before Run.
func NewCosigner(o CosignerOptions) (*Cosigner, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	o.Logger = o.Logger.With("tree", string(o.Lane), "witness", o.Witness.Name)
	c := &Cosigner{CosignerOptions: o, reader: NewReader(o.Pool, nil), client: &http.Client{Timeout: witnessWithin}, size: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "keyledger_checkpoint_cosigned_size", ConstLabels: prometheus.Labels{"lane": string(o.Lane), "witness": o.Witness.Name},
		Help: "Size of the newest checkpoint that the witness has cosigned, as far as this process knows.",
	})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(c.size); err != nil {
			return nil, fmt.Errorf("register the metrics of a witness: %w", err)
		}
	}
	return c, nil
}

// Run submits new checkpoints until ctx ends, which is no error.
func (c *Cosigner) Run(ctx context.Context) error {
	wait := c.Interval
	for {
		switch err := c.Submit(ctx); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			wait = c.Interval
		default:
			wait = min(2*wait, mostWitnessWait)
			c.Logger.Warn("a checkpoint was not cosigned; it is tried again", "pause", wait, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// Submit has the newest checkpoint cosigned, if it is not yet.
func (c *Cosigner) Submit(ctx context.Context) error {
	note, err := c.reader.Checkpoint(ctx, c.Lane)
	if domain.CodeOf(err) == domain.CodeNotFound {
		return nil // nothing is signed yet
	}
	if err != nil {
		return err
	}
	checkpoint, err := Read(note)
	if err != nil {
		return err
	}
	if _, ok := c.Witness.Cosigned(note); ok {
		c.seen(checkpoint)
		return nil
	}
	if c.origin != checkpoint.Origin {
		c.origin, c.old = checkpoint.Origin, 0 // another log, as witnesses see it
	}
	for range 2 { // the first answer may be where the witness stands
		status, body, err := c.post(ctx, checkpoint, note)
		if err != nil {
			return err
		}
		switch status {
		case http.StatusOK:
			return c.keep(ctx, checkpoint, note, body)
		case http.StatusConflict:
			size, err := strconv.ParseUint(strings.TrimSpace(string(body)), 10, 63)
			switch {
			case err != nil:
				return errors.New("the witness says that it stands elsewhere, and not where")
			case domain.Position(size) == c.old:
				return fmt.Errorf("THE WITNESS HAS COSIGNED ANOTHER TREE of size %d than this one: was history written anew?", size)
			case domain.Position(size) > checkpoint.Size:
				if now, err := c.reader.Size(ctx, c.Lane); err == nil && now >= domain.Position(size) {
					return nil // another node was faster, with a newer one
				}
				return fmt.Errorf("the witness has seen size %d, and this ledger is at %d: was it rolled back?", size, checkpoint.Size)
			}
			c.old = domain.Position(size)
		case http.StatusUnprocessableEntity:
			return fmt.Errorf("THE WITNESS FINDS that size %d does not continue the size %d that it has cosigned: was history written anew?", checkpoint.Size, c.old)
		default:
			return fmt.Errorf("the witness answers with status %d", status)
		}
	}
	return errors.New("the witness stands elsewhere each time that it is asked")
}

// post sends a checkpoint, with the proof that it continues the old one.
func (c *Cosigner) post(ctx context.Context, checkpoint Checkpoint, note []byte) (status int, answer []byte, err error) {
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", c.old)
	if c.old > 0 && c.old < checkpoint.Size {
		proof, err := c.reader.Consistency(ctx, c.Lane, c.old, checkpoint.Size)
		if err != nil {
			return 0, nil, err
		}
		for _, h := range proof {
			body.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
		}
	}
	body.WriteByte('\n')
	body.Write(note)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Witness.URL+"/add-checkpoint", &body)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the witness: %w", err)
	}
	response, err := c.client.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("ask the witness: %w", err)
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	answer, err = io.ReadAll(io.LimitReader(response.Body, mostWitnessBytes))
	if err != nil {
		return 0, nil, fmt.Errorf("ask the witness: %w", err)
	}
	return response.StatusCode, answer, nil
}

// keep adds the witness's own lines to the stored note, and nothing else that was sent.
func (c *Cosigner) keep(ctx context.Context, checkpoint Checkpoint, note, answer []byte) error {
	text := string(note[:bytes.LastIndex(note, []byte("\n\n"))+1])
	for line := range strings.Lines(string(answer)) {
		if _, ok := c.Witness.verify(text, line); !ok || !strings.HasSuffix(line, "\n") {
			continue
		}
		_, err := c.Pool.Exec(ctx, `UPDATE log_checkpoints SET note = note || $4 WHERE lane = $1 AND epoch = $2 AND size = $3 AND strpos(note, $5) = 0`,
			pgx.QueryExecModeSimpleProtocol, string(c.Lane), int64(checkpoint.Epoch), int64(checkpoint.Size), line, "\n— "+c.Witness.Name+" ")
		if err != nil {
			return eventstore.Wrap(err, "keep the cosignature of size %d", checkpoint.Size)
		}
		c.seen(checkpoint)
		return nil
	}
	return errors.New("the witness agrees, and has not cosigned the checkpoint with the key that is known of it")
}

func (c *Cosigner) seen(checkpoint Checkpoint) {
	c.origin, c.old = checkpoint.Origin, checkpoint.Size
	c.size.Set(float64(checkpoint.Size))
}
