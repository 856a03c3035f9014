//go:build race

package sweep

// raceEnabled: the checks take seven times as long, so that a sample has to do.
const raceEnabled = true
