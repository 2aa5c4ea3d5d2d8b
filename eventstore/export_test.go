package eventstore

import "keyledger/domain"

// What codec_test.go holds against golden files.

func Encode(event domain.Event) (data []byte, personal any, err error) { return encode(event) }

func EncodeMetadata(m domain.Metadata) ([]byte, error) { return encodeMetadata(m) }
