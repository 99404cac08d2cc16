package fhir

// Meta says what a body lacks of meta.versionId and meta.lastUpdated, and where
// it would be put. The zero value lacks nothing.
//
// The places are these, and each is valid whatever the body looks like:
// a body without meta gets one right behind its id, which every resource has;
// in a meta that lacks something it goes right behind the opening brace.
type Meta struct {
	at    uint32 // offset into the body
	flags metaFlags
}

type metaFlags uint8

const (
	lacksVersion metaFlags = 1 << iota
	lacksUpdated
	lacksMeta // there is no meta at all: at is the end of the id
	emptyMeta // meta is {}: no comma behind what is injected
)

const (
	versionName = `"versionId":"`
	updatedName = `"lastUpdated":"`
	metaName    = `,"meta":{`
	instantLen  = len("2006-01-02T15:04:05.000Z")
)

// Missing says what Inject would add.
func (m Meta) Missing() (versionID, lastUpdated bool) {
	return m.flags&lacksVersion != 0, m.flags&lacksUpdated != 0
}

// Len is the number of bytes that Inject adds to the body, for any instant
// with four digits of the year.
func (m Meta) Len(versionID string) int {
	noVersion, noUpdated := m.Missing()
	n := 0
	if noVersion {
		n += len(versionName) + len(versionID) + len(`"`)
	}
	if noUpdated {
		n += len(updatedName) + instantLen + len(`"`)
	}
	if noVersion && noUpdated {
		n += len(`,`)
	}
	switch {
	case n == 0:
		return 0
	case m.flags&lacksMeta != 0:
		n += len(metaName) + len(`}`)
	case m.flags&emptyMeta == 0:
		n += len(`,`)
	}
	return n
}

// Inject appends body to dst, with what it lacks. What is there already stays,
// also a lastUpdated that is no instant. versionID must be a FHIR id (it is
// written as it is), body the one that m was found in.
func (m Meta) Inject(dst, body []byte, versionID string, lastUpdated Instant) []byte {
	noVersion, noUpdated := m.Missing()
	if !noVersion && !noUpdated {
		return append(dst, body...)
	}
	dst = append(dst, body[:m.at]...)
	dst = m.appendMissing(dst, versionID, lastUpdated)
	return append(dst, body[m.at:]...)
}

// Pieces is Inject without a copy of the body: what stands before, what is
// injected, appended to dst, and what stands behind.
func (m Meta) Pieces(dst, body []byte, versionID string, lastUpdated Instant) (before, injected, behind []byte) {
	if noVersion, noUpdated := m.Missing(); !noVersion && !noUpdated {
		return body, nil, nil
	}
	return body[:m.at], m.appendMissing(dst, versionID, lastUpdated), body[m.at:]
}

func (m Meta) appendMissing(dst []byte, versionID string, lastUpdated Instant) []byte {
	noVersion, noUpdated := m.Missing()
	if m.flags&lacksMeta != 0 {
		dst = append(dst, metaName...)
	}
	if noVersion {
		dst = append(dst, versionName...)
		dst = append(dst, versionID...)
		dst = append(dst, '"')
	}
	if noVersion && noUpdated {
		dst = append(dst, ',')
	}
	if noUpdated {
		dst = append(dst, updatedName...)
		dst = append(lastUpdated.Append(dst), '"')
	}
	switch {
	case m.flags&lacksMeta != 0:
		dst = append(dst, '}')
	case m.flags&emptyMeta == 0:
		dst = append(dst, ',')
	}
	return dst
}
