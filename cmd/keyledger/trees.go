package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"keyledger/domain"
	"keyledger/internal/backing"
	"keyledger/internal/datadir"
	"keyledger/projections/transparency"
)

// checkpointKeyFile holds the drawn key, as hexadecimal text: KEYLEDGER_CHECKPOINT_KEY_FILE
// can name this very file.
const checkpointKeyFile = "checkpoint.key"

// checkpointKeys gives the keys that sign checkpoints. One is drawn where there is
// none and draw says so; otherwise there are none then.
func (p *program) checkpointKeys(dir *datadir.Dir, draw bool) ([]ed25519.PrivateKey, backing.Origin, error) {
	if p.config.CheckpointKey.IsSet() {
		keys, err := transparency.ParsePrivateKeys(p.config.CheckpointKey.Reveal())
		if err != nil {
			return nil, backing.Configured, usageError{err}
		}
		return keys, backing.Configured, nil
	}
	origin := backing.Kept
	if _, err := os.Stat(dir.Path(checkpointKeyFile)); err != nil {
		if origin = backing.Drawn; !draw {
			return nil, origin, nil
		}
	}
	seed, err := dir.ReadOrCreateSecret(checkpointKeyFile, ed25519.SeedSize)
	if err != nil {
		return nil, origin, err
	}
	keys, err := transparency.ParsePrivateKeys(hex.EncodeToString(seed))
	return keys, origin, err
}

// startTrees keeps the transparency log.
func (n *node) startTrees(context.Context) error {
	keys, origin, err := n.checkpointKeys(n.dir, true)
	if err != nil {
		return err
	}
	if n.config.DatabaseURL.IsSet() && origin != backing.Configured {
		n.logger.Warn("the key that signs checkpoints was drawn into this data directory: other nodes sign with other keys, and auditors have to know each of them. "+
			"Set KEYLEDGER_CHECKPOINT_KEY or KEYLEDGER_CHECKPOINT_KEY_FILE on all nodes", "file", n.dir.Path(checkpointKeyFile))
	}
	for _, key := range transparency.Public(keys) {
		n.logger.Info("checkpoints of the log are signed: keep the public key, and now and then a checkpoint, outside this machine", "public_key", transparency.PublicKeyText(key))
	}
	for _, lane := range domain.Lanes() {
		tree, err := transparency.New(transparency.Options{
			Pool: n.pool, Log: n.store, Lane: lane, Keys: keys, Memory: treeMemory{dir: n.dir}, Logger: n.logger, Registerer: n.registry,
		})
		if err != nil {
			return err
		}
		n.parts.Go("tree "+string(lane), again(tree.Run))
		for _, text := range n.config.Witness {
			w, err := transparency.ParseWitness(text)
			if err != nil {
				return usageError{fmt.Errorf("--witness (KEYLEDGER_WITNESS): %w", err)}
			}
			cosigner, err := transparency.NewCosigner(transparency.CosignerOptions{Pool: n.pool, Lane: lane, Witness: w, Logger: n.logger, Registerer: n.registry})
			if err != nil {
				return err
			}
			n.parts.Go("witness of "+string(lane)+" "+w.Name, cosigner.Run)
		}
	}
	return nil
}

// treeMemory keeps the newest checkpoint of a lane in the data directory.
type treeMemory struct{ dir *datadir.Dir }

func memoryFile(lane domain.Lane) string { return "checkpoint-" + string(lane) + ".note" }

func (m treeMemory) Recall(lane domain.Lane) ([]byte, error) {
	signed, err := m.dir.ReadFile(memoryFile(lane))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return signed, err
}

func (m treeMemory) Remember(lane domain.Lane, signed []byte) error {
	return m.dir.WriteFile(memoryFile(lane), signed)
}
