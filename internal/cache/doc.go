// Package cache keeps what is expensive to make and always the same: artifacts
// of a Maven repository, unpacked servers, formatted data directories.
//
// # Guarantees
//
//   - An entry is complete or absent: it is built beside its place and renamed.
//   - One process builds an entry, others that want it wait for it.
//   - An artifact's bytes are those of its pinned SHA-256, or, where none is
//     pinned, those of the checksum file that the repository publishes beside it.
//
// # Place
//
// BACKSTORY_CACHE, else /var/cache/backstory for root (servers that drop root
// must be able to read it), else "backstory" in the user's cache directory.
// Deleting it is safe while no server of it runs.
//
// BACKSTORY_MAVEN_URL names the repository, for a mirror or a network without a
// way out; default https://repo1.maven.org/maven2. HTTPS_PROXY is honoured.
package cache
