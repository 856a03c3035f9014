// Package nbdclient is a complete NBD client in Go, for `marsd demo`, for
// tests and for benchmarks: fixed newstyle GO, structured replies, several
// connections, many requests in flight, errors as errno. Raw speaks the
// protocol step by step, for tests that send what no client would.
//
// # Guarantees
//
//   - All methods of Client may be called concurrently. A request that returned nil was acknowledged by the server.
//   - Flush covers all requests that returned before it was called, on all connections: more than one are used
//     only if the server offers CAN_MULTI_CONN.
//   - The caller's memory is not touched after a call has returned, even if its context ended first.
//   - A refusal by the server is an *Error, which errors.Is finds by its syscall.Errno.
//
// # Non-guarantees
//
//   - A broken connection is not re-established: every later request on it fails with the reason.
//   - A request whose context ended may or may not be carried out.
//   - Requests larger than Client.MaxRequest are split and not atomic. No TLS.
package nbdclient
