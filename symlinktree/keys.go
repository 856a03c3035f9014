package symlinktree

// Keys of log attributes.
const (
	keyPath  = "path"
	keyDir   = "dir"
	keyValue = "value"
	keyStamp = "stamp"
	keyCount = "count"
	keyError = "error"
)
