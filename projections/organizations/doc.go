// Package organizations tells in which parts of the lifecycle lane an organization's
// events stand, so that its feed and its webhooks read little of what others did.
//
// A part is a run of [PartSize] positions. An index over the events themselves would be
// more exact, and every append would pay for it, under the lock that all appends take in turn:
// a quarter of their throughput. This fold costs nothing there, and a row is written
// once for a part and not once for an event. Whoever reads a part passes over at most a part's
// length of others' events.
package organizations
