package pgserver

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"backstory/internal/cache"
)

// Oldest and Newest are the major versions that the bridge was tried with; Default
// is fetched where no version is asked for and none is installed. Wanted is one
// that was released and that the repository does not serve yet: it is run where it
// is installed. Once it is served it becomes Newest.
const (
	Oldest  = 10
	Newest  = 18
	Default = 17
	Wanted  = 19
)

// ErrNotServed says that a version is wanted, not installed, and that there is no
// build of it to fetch yet.
var ErrNotServed = errors.New("io.zonky.test.postgres does not serve it yet")

// releases are the builds that are fetched, by major version.
var releases = map[int]string{
	10: "10.23.0", 11: "11.22.1", 12: "12.22.0", 13: "13.23.0", 14: "14.24.0",
	15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0",
}

// digests pins the SHA-256 of builds, by platform and release: all versions
// where tests run them, and the default where the demo may be tried. What is
// not pinned is compared with the checksum that the repository publishes.
var digests = map[string]string{
	"linux-amd64 10.23.0":        "e55e42533e1c2f135a4ef0c9e2cde634ff891dc71160483c12951fd611d8bc7c",
	"linux-amd64 11.22.1":        "89af78cc2c4dd05f7b7a665100b12cf9ec6c8d77e00e08c186e598730a0d4adf",
	"linux-amd64 12.22.0":        "f50ddff3308a65e2423ecfd94aefc200d7fe7e2a24d45c6aadb0a6cfbe9284c4",
	"linux-amd64 13.23.0":        "0713b8a6dbe13440718ea789eefca6ae562b004bc0541d9c21d20300529c1db2",
	"linux-amd64 14.24.0":        "2722d05eb22c671104c9918d59d8ba9f5656898f5452a0207bb4cce21eef5dc4",
	"linux-amd64 15.19.0":        "95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f",
	"linux-amd64 16.15.0":        "653abc065c682b85d3da50168fb95dc524bd85426cdec9ce3695a550ef431df2",
	"linux-amd64 17.11.0":        "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d",
	"linux-amd64 18.6.0":         "008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1",
	"linux-amd64-alpine 17.11.0": "ace9a6f95b1c98ce84c9841267cd04ebee5d7de5dc7b8fea148ead44f145afbd",
	"linux-arm64v8 17.11.0":      "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b",
	"darwin-amd64 17.11.0":       "d464ff178e9860ba204662ac23fa547504b7fd392392ff2fb92e3fd73b5bdb64",
	"darwin-arm64v8 17.11.0":     "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5",
}

// artifact is the jar with the build of a major version for this machine.
func artifact(major int) (cache.Artifact, error) {
	platform, err := platform(runtime.GOOS, runtime.GOARCH, musl())
	if err != nil {
		return cache.Artifact{}, err
	}
	release, ok := releases[major]
	if !ok {
		return cache.Artifact{}, &Refusal{
			Thing: fmt.Sprintf("postgres %d", major), Problem: "wanted, but not installed, and there is no build of it to fetch", Err: ErrNotServed,
			Cure: "install the Postgres server, or set BACKSTORY_PG_BIN to the directory of its programs",
		}
	}
	return cache.Artifact{
		Group:   "io.zonky.test.postgres",
		Name:    "embedded-postgres-binaries-" + platform,
		Version: release,
		SHA256:  digests[platform+" "+release],
	}, nil
}

// platform names the builds that exist.
func platform(goos, goarch string, musl bool) (string, error) {
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64v8"}[goarch]
	switch {
	case arch == "" || goos != "linux" && goos != "darwin", musl && goarch != "amd64":
		system := goos + "/" + goarch
		if musl {
			system += " with musl"
		}
		return "", &Refusal{
			Thing:   "postgres",
			Problem: fmt.Sprintf("there is no build of it to fetch for %s", system),
			Cure:    "install the Postgres server, or set BACKSTORY_PG_BIN to the directory of its programs",
		}
	case musl:
		return goos + "-" + arch + "-alpine", nil
	}
	return goos + "-" + arch, nil
}

// musl reports whether programs built for glibc don't run here.
func musl() bool {
	loaders, err := filepath.Glob("/lib/ld-musl-*.so.1")
	return err == nil && len(loaders) > 0
}
