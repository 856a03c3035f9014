package nbd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"mars/internal/nbdproto"
)

// Errno is the NBD error value for err: 0 for nil, EIO for what says nothing
// better. Only values that the protocol allows are returned.
func Errno(err error) uint32 {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.EPERM, syscall.EACCES, syscall.EROFS:
			return nbdproto.EPERM
		case syscall.ENOMEM:
			return nbdproto.ENOMEM
		case syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ENOSYS:
			// NBD reserves ENOTSUP for FAST_ZERO, which is decided before the backend is asked.
			return nbdproto.EINVAL
		case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
			return nbdproto.ENOSPC
		case syscall.EOVERFLOW:
			return nbdproto.EOVERFLOW
		case syscall.ESHUTDOWN:
			return nbdproto.ESHUTDOWN
		}
		return nbdproto.EIO
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nbdproto.EPERM
	case errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed), errors.Is(err, fs.ErrClosed):
		return nbdproto.ESHUTDOWN
	}
	return nbdproto.EIO
}
