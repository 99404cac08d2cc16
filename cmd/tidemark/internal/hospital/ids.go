package hospital

const hex = "0123456789abcdef"

// appendID writes the id of a resource: a UUID that follows from the seed, the
// kind and the serial, so any reference can be written without a look-up, and
// hospitals of different seeds can share a topic.
func appendID(dst []byte, seed uint64, k kind, serial uint64) []byte {
	a := mix(seed ^ mix(uint64(k)<<56^serial))
	b := mix(a ^ serial)
	a = a&^0xf000 | 0x4000       // version 4
	b = b&^(0xc0<<56) | 0x80<<56 // its variant
	dst = appendHex(dst, a>>32, 8)
	dst = appendHex(append(dst, '-'), a>>16, 4)
	dst = appendHex(append(dst, '-'), a, 4)
	dst = appendHex(append(dst, '-'), b>>48, 4)
	return appendHex(append(dst, '-'), b, 12)
}

func appendHex(dst []byte, x uint64, digits int) []byte {
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		dst = append(dst, hex[x>>shift&0xf])
	}
	return dst
}
