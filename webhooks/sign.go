package webhooks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"keyledger/domain"
)

// signatures is the header of Standard Webhooks: one signature a secret, the newest first.
func signatures(id string, at time.Time, body []byte, secrets []domain.SigningSecret) string {
	var text []byte
	for i, secret := range secrets {
		mac := hmac.New(sha256.New, secret.Key())
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		if i > 0 {
			text = append(text, ' ')
		}
		text = base64.StdEncoding.AppendEncode(append(text, "v1,"...), mac.Sum(nil))
	}
	return string(text)
}

// vault keeps secrets in the database without the database being able to sign.
// A sealed one is: 0x01, a random nonce (12 bytes), and the ciphertext with its tag (AES-256-GCM),
// bound to its webhook and organization.
type vault struct{ key cipher.AEAD }

const vaultFormat = 1

func newVault(key []byte) (vault, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return vault{}, fmt.Errorf("make the vault of webhooks: %w", err)
	}
	gcm, err := cipher.NewGCM(block)
	return vault{gcm}, err
}

func boundTo(id domain.WebhookID, organization domain.OrganizationID) []byte {
	return append(append([]byte("keyledger webhook secret 1\x00"), id[:]...), organization...)
}

func (v vault) seal(secret domain.SigningSecret, id domain.WebhookID, organization domain.OrganizationID) []byte {
	nonce := make([]byte, v.key.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return v.key.Seal(append([]byte{vaultFormat}, nonce...), nonce, secret.Key(), boundTo(id, organization))
}

func (v vault) open(sealed []byte, id domain.WebhookID, organization domain.OrganizationID) (domain.SigningSecret, error) {
	nonce := 1 + v.key.NonceSize()
	if len(sealed) < nonce || sealed[0] != vaultFormat {
		return domain.SigningSecret{}, errors.New("the secret of a webhook is not in a format that is known here")
	}
	plain, err := v.key.Open(nil, sealed[1:nonce], sealed[nonce:], boundTo(id, organization))
	if err != nil {
		return domain.SigningSecret{}, errors.New("the secret of a webhook cannot be opened: the master key is not the one that it was stored under")
	}
	return domain.SigningSecretOf(plain), nil
}
