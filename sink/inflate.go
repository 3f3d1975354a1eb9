package sink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// codec is the compression of a record batch: the lowest bits of its attributes.
type codec uint16

// The codecs of Kafka.
const (
	codecNone codec = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd

	codecMask = 7
)

const (
	// maxInflated bounds, in bytes, the records of one batch when they are
	// uncompressed. Postgres can't hold a larger row, and a broken or malicious
	// batch can't take more memory than this.
	maxInflated = 1 << 30
	// keepInflated is the largest buffer, in bytes, that is kept for the batch after.
	keepInflated = 32 << 20
)

// inflater uncompresses the records of batches. It keeps its decompressors and
// one buffer; the result of a call is valid until the following one.
type inflater struct {
	limit int // bytes a batch may have when uncompressed; 0: maxInflated
	buf   []byte
	src   bytes.Reader
	gzip  *gzip.Reader
	lz4   *lz4.Reader
	zstd  *zstd.Decoder
}

// inflate returns the uncompressed bytes of b: b itself if it is not compressed.
func (f *inflater) inflate(c codec, b []byte) ([]byte, error) {
	if f.limit == 0 {
		f.limit = maxInflated
	}
	if cap(f.buf) > keepInflated {
		f.buf = nil
	}
	var err error
	switch c {
	case codecNone:
		return b, nil
	case codecGzip:
		err = f.inflateGzip(b)
	case codecSnappy:
		err = f.inflateSnappy(b)
	case codecLZ4:
		err = f.inflateLZ4(b)
	case codecZstd:
		err = f.inflateZstd(b)
	default:
		return nil, fmt.Errorf("compression %d is unknown", c)
	}
	if err != nil {
		return nil, err
	}
	return f.buf, nil
}

func (f *inflater) inflateGzip(b []byte) error {
	f.src.Reset(b)
	var err error
	if f.gzip == nil {
		f.gzip, err = gzip.NewReader(&f.src)
	} else {
		err = f.gzip.Reset(&f.src)
	}
	if err == nil {
		err = f.readAll(f.gzip)
	}
	if err != nil {
		f.gzip = nil
		return fmt.Errorf("gzip: %w", err)
	}
	return nil
}

func (f *inflater) inflateLZ4(b []byte) error {
	f.src.Reset(b)
	if f.lz4 == nil {
		f.lz4 = lz4.NewReader(&f.src)
	} else {
		f.lz4.Reset(&f.src)
	}
	if err := f.readAll(f.lz4); err != nil {
		f.lz4 = nil
		return fmt.Errorf("lz4: %w", err)
	}
	return nil
}

// readAll reads r into the buffer, which it grows by doubling.
func (f *inflater) readAll(r io.Reader) error {
	f.buf = f.buf[:0]
	for {
		if len(f.buf) == cap(f.buf) {
			f.buf = append(f.buf, make([]byte, max(64<<10, len(f.buf)))...)[:len(f.buf)]
		}
		n, err := r.Read(f.buf[len(f.buf):cap(f.buf)])
		f.buf = f.buf[:len(f.buf)+n]
		if len(f.buf) > f.limit {
			return f.tooLarge()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (f *inflater) inflateZstd(b []byte) error {
	if f.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(uint64(f.limit)))
		if err != nil {
			return fmt.Errorf("zstd: %w", err)
		}
		f.zstd = d
	}
	out, err := f.zstd.DecodeAll(b, f.buf[:0])
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	f.buf = out
	return nil
}

// xerialMagic begins the framing of snappy-java, which Kafka's clients write.
// Behind it: two int32 of versions, then blocks, each with its length as int32.
const xerialMagic = "\x82SNAPPY\x00"

const xerialHead = len(xerialMagic) + 8

func (f *inflater) inflateSnappy(b []byte) error {
	f.buf = f.buf[:0]
	if len(b) < xerialHead || string(b[:len(xerialMagic)]) != xerialMagic {
		return f.snappyBlock(b)
	}
	for b = b[xerialHead:]; len(b) > 0; {
		if len(b) < 4 {
			return fmt.Errorf("snappy block: %w", errTruncated)
		}
		size := int64(binary.BigEndian.Uint32(b))
		if size > int64(len(b)-4) {
			return fmt.Errorf("snappy block: %w", errTruncated)
		}
		if err := f.snappyBlock(b[4 : 4+size]); err != nil {
			return err
		}
		b = b[4+size:]
	}
	return nil
}

// snappyBlock uncompresses one block to the end of the buffer.
func (f *inflater) snappyBlock(b []byte) error {
	size, err := s2.DecodedLen(b)
	if err != nil {
		return fmt.Errorf("snappy: %w", err)
	}
	// No snappy element of two bytes and more yields more than 64 bytes.
	if size > f.limit-len(f.buf) || int64(size) > 64*int64(len(b)) {
		return f.tooLarge()
	}
	at := len(f.buf)
	f.buf = append(f.buf, make([]byte, size)...)
	if _, err := s2.Decode(f.buf[at:], b); err != nil {
		return fmt.Errorf("snappy: %w", err)
	}
	return nil
}

func (f *inflater) tooLarge() error {
	return fmt.Errorf("more than %d bytes when uncompressed", f.limit)
}
