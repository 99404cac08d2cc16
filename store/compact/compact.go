// Package compact walks through JSON that was validated and compacted when it came
// in (fhir.Scanner): its functions take the place where something begins and return
// the place behind it, and trust that it is there.
package compact

// Skip passes by a value.
func Skip(b []byte, i int) int {
	switch b[i] {
	case '"':
		return SkipText(b, i)
	case '{', '[':
		return skipNested(b, i)
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
		i++
	}
	return i
}

func skipNested(b []byte, i int) int {
	for depth := 0; ; {
		switch b[i] {
		case '"':
			i = SkipText(b, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
		i++
	}
}
