// Package audit holds a ledger against its promises, from outside: it reads the
// tables and the streams by its own queries and shares no reading code with the
// service. Fault tests end by running it, and it is itself tested with planted
// faults.
package audit
