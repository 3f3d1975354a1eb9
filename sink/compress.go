package sink

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// codecs are the names of the compressions in the configuration.
var codecs = map[string]codec{
	"none": codecNone, "gzip": codecGzip, "snappy": codecSnappy, "lz4": codecLZ4, "zstd": codecZstd,
}

const (
	// lz4Head begins a frame of independent blocks of at most lz4Block bytes,
	// without checksums (Kafka's CRC covers them): magic, flags, block size, and
	// the byte of the header's hash. Java's producer writes the same.
	lz4Head  = "\x04\x22\x4d\x18\x60\x40\x82"
	lz4Block = 64 << 10
	// lz4Stored marks a block that is not compressed.
	lz4Stored = 1 << 31
	// snappyBlockSize is that of snappy-java.
	snappyBlockSize = 32 << 10
)

// deflater compresses the records of batches with one codec, at its fastest
// setting. It keeps what it needs from one batch to the next and serves one
// goroutine.
type deflater struct {
	codec codec
	lz4   lz4.Compressor
	gzip  *gzip.Writer
	out   bytes.Buffer // of gzip
	zstd  *zstd.Encoder
}

func newDeflater(c codec) (*deflater, error) {
	d := &deflater{codec: c}
	var err error
	switch c {
	case codecGzip:
		d.gzip, err = gzip.NewWriterLevel(nil, gzip.BestSpeed)
	case codecZstd:
		d.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false))
	}
	if err != nil {
		return nil, fmt.Errorf("compression: %w", err)
	}
	return d, nil
}

// deflate appends src to dst, compressed, and says with which codec: with none
// where that is not longer.
func (d *deflater) deflate(dst, src []byte) ([]byte, codec, error) {
	at := len(dst)
	out, err := d.compress(dst, src)
	if err != nil {
		return dst, codecNone, err
	}
	if d.codec == codecNone || len(out)-at >= len(src) {
		return append(out[:at], src...), codecNone, nil
	}
	return out, d.codec, nil
}

func (d *deflater) compress(dst, src []byte) ([]byte, error) {
	switch d.codec {
	case codecGzip:
		return d.compressGzip(dst, src)
	case codecSnappy:
		return compressSnappy(dst, src), nil
	case codecLZ4:
		return d.compressLZ4(dst, src)
	case codecZstd:
		return d.zstd.EncodeAll(src, dst), nil
	}
	return dst, nil
}

func (d *deflater) compressGzip(dst, src []byte) ([]byte, error) {
	d.out.Reset()
	d.gzip.Reset(&d.out)
	if _, err := d.gzip.Write(src); err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	if err := d.gzip.Close(); err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	return append(dst, d.out.Bytes()...), nil
}

// compressLZ4 writes the frame itself: the library's writer allocates and hands
// blocks between goroutines, which costs more than it gives at 64 KiB a block.
func (d *deflater) compressLZ4(dst, src []byte) ([]byte, error) {
	dst = append(dst, lz4Head...)
	for len(src) > 0 {
		n := min(len(src), lz4Block)
		at := len(dst)
		dst = extend(dst, 4+lz4.CompressBlockBound(n))
		size, err := d.lz4.CompressBlock(src[:n], dst[at+4:])
		if err != nil {
			return nil, fmt.Errorf("lz4: %w", err)
		}
		if size == 0 || size >= n {
			size = copy(dst[at+4:], src[:n])
			binary.LittleEndian.PutUint32(dst[at:], uint32(size)|lz4Stored)
		} else {
			binary.LittleEndian.PutUint32(dst[at:], uint32(size))
		}
		dst = dst[:at+4+size]
		src = src[n:]
	}
	return append(dst, 0, 0, 0, 0), nil
}

func compressSnappy(dst, src []byte) []byte {
	dst = append(dst, xerialMagic...)
	dst = append(dst, 0, 0, 0, 1, 0, 0, 0, 1)
	for len(src) > 0 {
		n := min(len(src), snappyBlockSize)
		at := len(dst)
		dst = extend(dst, 4+s2.MaxEncodedLen(n))
		block := s2.EncodeSnappy(dst[at+4:], src[:n])
		binary.BigEndian.PutUint32(dst[at:], uint32(len(block)))
		dst = dst[:at+4+len(block)]
		src = src[n:]
	}
	return dst
}

// extend lengthens b by n bytes of any content.
func extend(b []byte, n int) []byte {
	if cap(b)-len(b) < n {
		grown := make([]byte, len(b), max(2*cap(b), len(b)+n))
		copy(grown, b)
		b = grown
	}
	return b[:len(b)+n]
}
