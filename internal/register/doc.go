// Package register checks that a history of reads and writes of one register has a legal order.
//
// # Guarantees
//
//   - Check is exact: it refuses a history if and only if no linearization exists. It needs time proportional
//     to the square of the number of values, not to its factorial, because each value is written once.
//
// # Non-guarantees
//
//   - Nothing is said about the order between registers: a device promises it only through FLUSH, which
//     internal/oracle checks.
package register
