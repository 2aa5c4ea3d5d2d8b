package http

import (
	"net/netip"
	"slices"
	"strings"
)

// clientAddress walks X-Forwarded-For from the right, where our own proxies have
// written, for as long as the address so far is a trusted proxy's. What stands
// further left can be made up by anybody.
func clientAddress(remote netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	isTrusted := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	address := remote
	for _, text := range slices.Backward(forwarded) {
		if !isTrusted(address) {
			break
		}
		next, ok := parseForwarded(strings.TrimSpace(text))
		if !ok {
			break
		}
		address = next
	}
	return address
}

// parseForwarded reads an address that may have a port, as some proxies write it.
func parseForwarded(text string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return a.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}
