//go:build race

package adm

// raceEnabled: the race detector makes everything several times slower.
const raceEnabled = true
