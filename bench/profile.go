package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// profiling collects the profiles of a marsd that was built with the tag "profile".
type profiling struct {
	client *http.Client
	prefix string
	done   chan error
}

// startProfile begins a CPU profile over the measurement, nil if there is none to be had.
func startProfile(o options, s *server, l load) *profiling {
	if o.profile == "" || s.pprof == "" {
		return nil
	}
	p := &profiling{prefix: filepath.Join(o.profile, strings.NewReplacer(" ", "-", ":", "-").Replace(l.name)+"."), done: make(chan error, 1)}
	p.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.pprof)
	}}}
	seconds := max(1, int((warmUp+o.runtime).Round(time.Second)/time.Second))
	go func() { p.done <- p.fetch(fmt.Sprintf("profile?seconds=%d", seconds), "cpu") }()
	return p
}

// finish waits for the CPU profile and takes those that count from the start of the process.
func (p *profiling) finish() error {
	errs := []error{<-p.done}
	for _, kind := range []string{"mutex", "block", "allocs"} {
		errs = append(errs, p.fetch(kind, kind))
	}
	p.client.CloseIdleConnections()
	return errors.Join(errs...)
}

func (p *profiling) fetch(path, kind string) error {
	resp, err := p.client.Get("http://marsd/debug/pprof/" + path)
	if err != nil {
		return fmt.Errorf("fetch profile: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch profile %s: %s", path, resp.Status)
	}
	f, err := os.Create(p.prefix + kind + ".pprof")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(f, resp.Body)
	return err
}
