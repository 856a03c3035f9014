//go:build profile

package main

import (
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"runtime"
)

// With the build tag "profile", for the benchmark, MARSD_PPROF names a unix socket on which
// the profiles of net/http/pprof are served. Releases are built without it.
func init() {
	path := os.Getenv("MARSD_PPROF")
	if path == "" {
		return
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	runtime.SetMutexProfileFraction(100)
	runtime.SetBlockProfileRate(10_000) // one sample per 10 µs blocked
	go http.Serve(l, nil)
}
