// The server of github.com/pojntfx/go-nbd with its file backend, as a peer of the benchmark. A module
// of its own, so that what it needs is no dependency of mars.
module mars/bench/gonbd

go 1.26.0

require github.com/pojntfx/go-nbd v0.3.2
