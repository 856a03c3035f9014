package nbd

// Keys of log lines.
const (
	keyExport   = "export"
	keyPeer     = "peer"
	keyConn     = "conn"
	keyErr      = "err"
	keyListener = "listener"
	keyHint     = "hint"
	keyOpen     = "open"
	keyRetry    = "retry_in"
	keyTLS      = "tls"
)
