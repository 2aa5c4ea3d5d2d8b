package webhooks

import (
	"errors"
	"net/netip"
	"syscall"
)

var errNotPublic = errors.New("the host has an address that is not public")

// Of IPv4, what the IANA's registry of special purposes does not call global; of
// IPv6, everything but the global unicast space, and of that what leads elsewhere.
var (
	notPublic4 = prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
		"224.0.0.0/4", "240.0.0.0/4",
	)
	global6    = netip.MustParsePrefix("2000::/3")
	notPublic6 = prefixes(
		"2001::/23", // Teredo, benchmarks, ORCHID and other special purposes
		"2001:db8::/32", "3fff::/20",
		"2002::/16", // 6to4: an IPv4 address is hidden in it
		"2620:4f:8000::/48",
	)
)

func prefixes(texts ...string) (prefixes []netip.Prefix) {
	for _, text := range texts {
		prefixes = append(prefixes, netip.MustParsePrefix(text))
	}
	return prefixes
}

// public says whether an address is one of the public internet.
func public(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	a = a.Unmap() // ::ffff:10.0.0.1 is 10.0.0.1
	special := notPublic4
	if a.Is6() {
		if special = notPublic6; !global6.Contains(a) {
			return false
		}
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsValid()
}

// onlyPublic is asked by the dialer for every address, when the name is resolved
// and before the connection is made: a name that is resolved anew is judged anew.
func onlyPublic(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil || !public(a.Addr()) {
		return errNotPublic
	}
	return nil
}
