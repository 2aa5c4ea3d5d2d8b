//go:build !linux

package index

import "unsafe"

func preferHugePages(unsafe.Pointer, uintptr) {}

func makeHugePages(unsafe.Pointer, uintptr) {}
