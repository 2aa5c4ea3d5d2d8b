// Package config is everything that can be set: one struct, whose field comments
// are the manual that --help prints.
//
// # What it promises
//
//   - A flag goes before its environment variable, which goes before the default.
//     The flag's name follows from the variable's: KEYLEDGER_DATA_DIR is
//     --data-dir, DATABASE_URL is --database-url.
//   - A secret can stand in a file: NAME_FILE instead of NAME. Both at once is an
//     error, since nobody could tell which one counts.
//   - Every known variable is accepted by every command, so that one environment
//     serves them all. An unknown variable that begins with KEYLEDGER_ is an error,
//     since it is a misspelt one. A variable that is set to nothing is not set.
//   - No error and no log line holds a secret, nor a URL's password.
package config
