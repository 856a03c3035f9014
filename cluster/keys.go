package cluster

// Keys of log lines.
const (
	keyNode     = "node"
	keyPeer     = "peer"
	keyResource = "resource"
	keyRoot     = "root"
	keyPath     = "path"
	keyAddr     = "addr"
	keyErr      = "err"
	keyValue    = "value"
	keyLog      = "logfile"
	keyPos      = "pos"
	keyAction   = "action"
)
