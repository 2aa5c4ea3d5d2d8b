// Package postgres runs a private Postgres server as part of the service.
//
// It promises:
//
//   - Data is never thrown away. A data directory of another major version, or
//     one that cannot be read, is an error with advice; nothing is initialised
//     over anything, and a first start that was interrupted leaves only a
//     temporary folder.
//   - One server to a directory. A postmaster that outlived its service is
//     stopped before a new one starts.
//   - The database ends with the service, however that ends, and comes back by
//     itself, on the same port and with everything that was committed, when it
//     dies while the service lives.
//   - It listens on a private Unix socket and on 127.0.0.1, and asks for a
//     generated password on both.
//
// Two logins exist. keyledger_admin owns the database keyledger, migrates it and
// is meant for tools. keyledger is what the service uses: it owns nothing and
// may do nothing but become keyledger_service, the role to which the migrations
// grant what the service needs.
//
// Postgres refuses to run as root. Under root it runs as the user postgres, or
// nobody, who then owns the data, and who must be able to walk to it.
package postgres
