package compact

// A Member is a "name":value of an object, as places in its text: the name with
// its quotes is from Name to Colon, the value from behind that to End.
type Member struct{ Name, Colon, End int }

// Members calls fn for each member of the object at i, until it says false, and
// returns the place behind the object, or behind the last member seen.
func Members(b []byte, i int, fn func(m Member) bool) int {
	for i++; b[i] != '}'; {
		m := Member{Name: i, Colon: SkipText(b, i)}
		m.End = Skip(b, m.Colon+1)
		if !fn(m) {
			return m.End
		}
		if i = m.End; b[i] == ',' {
			i++
		}
	}
	return i + 1
}
