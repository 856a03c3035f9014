package transport

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
)

// received takes the report of a peer about a log of this node.
func (c *call) received() error {
	resource, name, err := c.resourceLog()
	if err != nil {
		return err
	}
	length, err := c.length("length")
	if err != nil {
		return err
	}
	if err := c.body(maxSmallBody, nil); err != nil {
		return err
	}
	if err := c.s.h.Received(c.ctx, c.peer, resource, name, length); err != nil {
		return err
	}
	return c.reply(struct{}{})
}

// Received tells the peer, the author of a log, that this node has its first length bytes.
func (p *Peer) Received(ctx context.Context, resource, log string, length int64) error {
	e := Error{Op: "report what was received", Resource: resource, Log: log, Offset: length}
	if err := errors.Join(checkName("resource", resource), checkLogName(log)); err != nil {
		return p.explain(ctx, e, fmt.Errorf("%w: %v", ErrRefused, err))
	}
	q := url.Values{"length": {strconv.FormatInt(length, 10)}}
	err := p.json(ctx, request{method: "POST", path: "/v1/received/" + resource + "/" + log, query: q, body: struct{}{}}, maxSmallBody, &struct{}{})
	return p.explain(ctx, e, err)
}
