package export

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// text is a file that lies in the rule itself: a few lines of OperationOutcome,
// served like every other file.
type text string

func (t text) Size() int64     { return int64(len(t)) }
func (t text) GzipSize() int64 { return int64(len(t.gzip())) }
func (t text) CRC32() uint32   { return crc32.ChecksumIEEE([]byte(t)) }
func (t text) Close() error    { return nil }

func (t text) WriteIdentity(w io.Writer, off, n int64) error {
	_, err := io.WriteString(w, string(t[off:off+n]))
	return err
}

func (t text) WriteGzip(w io.Writer, off, n int64) error {
	_, err := w.Write(t.gzip()[off : off+n])
	return err
}

// gzip is one member of stored blocks. A compressor's output changes with its
// version; these bytes never do, so a download may go on after an upgrade.
func (t text) gzip() []byte {
	const maxStored = 1<<16 - 1
	dst := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}
	for rest := string(t); ; {
		n := min(len(rest), maxStored)
		final := byte(0)
		if n == len(rest) {
			final = 1
		}
		dst = append(dst, final)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(n))
		dst = binary.LittleEndian.AppendUint16(dst, ^uint16(n))
		dst = append(dst, rest[:n]...)
		if rest = rest[n:]; final == 1 {
			break
		}
	}
	dst = binary.LittleEndian.AppendUint32(dst, t.CRC32())
	return binary.LittleEndian.AppendUint32(dst, uint32(len(t)))
}
