package index

import (
	"syscall"
	"unsafe"
)

// A key that nobody has touched lately stands on pages whose addresses the processor does not know any
// more, and on a virtual machine looking them up costs more than fetching the key. So the segments are
// to be on pages of 2 MiB, of which some hundred do for a million keys.
const (
	hugePage = 2 << 20
	// madvise(2): the kernel is to prefer huge pages for what is touched from now on; and to make huge
	// pages of what was touched already (Linux 6.1). Either may fail, and then nothing is lost but time.
	adviseHuge = 14
	collapse   = 25
)

// preferHugePages asks for huge pages where memory is. Advice counts for whole huge pages, so that neighbours
// get it too: they are the next segments, as a rule.
func preferHugePages(at unsafe.Pointer, size uintptr) { advise(at, size, adviseHuge) }

// makeHugePages does it for what was touched already.
func makeHugePages(at unsafe.Pointer, size uintptr) {
	advise(at, size, adviseHuge)
	advise(at, size, collapse)
}

func advise(at unsafe.Pointer, size uintptr, advice int) {
	first := uintptr(at) &^ (hugePage - 1)
	end := (uintptr(at) + size + hugePage - 1) &^ (hugePage - 1)
	// It changes no byte, and the runtime's arenas consist of whole huge pages.
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, first, end-first, uintptr(advice))
}
