// Package transport is the one authenticated kind of connection between nodes:
// TLS identities derived from the cluster secret, tree exchange, log
// subscriptions, bulk reads for sync, and the gossip link. It moves bytes and
// decides nothing.
package transport
