// Package testenv gives tests real servers, and the means to break them.
//
//   - [Postgres]: a server of the process, with a database for each test, or a
//     private one that the test may kill.
//   - [Kafka]: a real Apache Kafka 4.1, one broker or several, plain or with TLS
//     and SASL. [KFake] is an embedded imitation: fast, and no proof.
//   - [Proxy]: a connection that can be cut, stalled or slowed, and that can lose a
//     produce request, its answer, or hold it back.
//   - [Eventually]: a bounded wait.
//
// # Which servers
//
// Each is taken from the first place that has it; the tests log which:
//
//	Postgres  BACKSTORY_TEST_POSTGRES (URL of a superuser; wal_level must be logical),
//	          an installed one, one fetched from Maven Central (15 MB)
//	Kafka     BACKSTORY_TEST_KAFKA (host:port,…), jars fetched from Maven Central
//	          (40 MB) run by the Java 17 or newer of JAVA_HOME or PATH
//
// BACKSTORY_TEST_PG_VERSION chooses the major version of Postgres. Where a
// server can't be had the test is skipped and says why, or fails if
// BACKSTORY_TEST_REQUIRE ("postgres,kafka") names the server.
//
// # Ends
//
// Shared servers live until [Main] stops them, or until the kernel does when
// the process dies. The first use on a machine prepares a cache (package cache);
// later ones are ready in 0.2 s (Postgres) and 3 s (Kafka).
package testenv
