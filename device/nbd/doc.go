// Package nbd exports block devices over the NBD protocol (fixed newstyle) to
// any NBD client: the kernel, qemu, libnbd, fio. It moves requests between
// sockets and a Backend, and knows neither logs nor clusters.
//
// # Guarantees
//
//   - A write is acknowledged after Backend.Submit returned nil for it, a FLUSH
//     or FUA request after Backend.Sync called back without an error. CAN_MULTI_CONN is
//     offered because Sync covers what all connections submitted.
//   - A reply starts only when its data is in hand: a failed read is an error
//     reply, never a broken stream. Errors reach the client as one of the values NBD allows.
//   - A read that arrives after the acknowledgement of a write sees it, on every connection. Within what
//     one receive delivered, a write in front of a read is submitted before the read is served.
//   - A refused request (beyond the end, read-only, unknown command or flag) changes nothing, and its
//     payload is consumed, so the next request is understood. A wrong magic number or a
//     write of more than 32 MiB ends the connection with a log line that says why.
//   - A write whose payload did not arrive completely changes nothing.
//   - Memory per connection is bounded by Config.MaxInFlightBytes plus Config.ReceiveBuffer plus one request of
//     32 MiB; a client that does not read its replies blocks only itself.
//   - Block status never calls data zero. FAST_ZERO is accepted only if the backend says that it is fast, and
//     nothing is zeroed when it is refused.
//   - Behind ServeTLS with require nobody learns even the names of exports without TLS, and what was agreed on
//     before STARTTLS is void.
//   - OpenCount falls as soon as a client is gone and its requests in flight are done; Remove and Close wait for that.
//
// # Non-guarantees
//
//   - Requests in flight at the same time have no order, not even on one connection, as NBD says.
//   - Writes larger than what the Backend treats as a unit are not atomic.
//   - A connection may stay idle, or stop in the middle of a request, for ever: only the handshake has a deadline.
//   - Without ServeTLS there is no authentication: whoever can connect can write. Protect the unix socket by its directory.
//   - No extended headers: one request reaches at most 4 GiB, and one with data 32 MiB.
package nbd
