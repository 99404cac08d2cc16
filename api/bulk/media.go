package bulk

import (
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"tidemark/api/outcome"
)

// jsonTypes are the names of what we write and read: FHIR as JSON. The second is
// the general one, which FHIR wants servers to take for the first.
var jsonTypes = []string{"application/fhir+json", "application/json"}

// release is the FHIR that is spoken here, as the media type parameter
// fhirVersion has it (FHIR R4, "FHIR Version Parameter").
const release = "4.0"

// otherRelease tells whether a fhirVersion names another FHIR than ours; "" is no
// wish. Some clients give all three numbers.
func otherRelease(version string) bool {
	return version != "" && version != release && version != release+".1"
}

// weight is how welcome a media type that goes by these names is to a client, 0
// to 1: the most specific range of Accept that holds it counts (RFC 9110,
// section 12.5.1). One that names it in another release of FHIR does not.
func weight(h http.Header, names ...string) float64 {
	ranges := list(h, "Accept")
	if len(ranges) == 0 {
		return 1
	}
	weights := map[int]float64{} // by specificity
	for _, e := range ranges {
		if s := e.holds(names); s > 0 && !otherRelease(e.fhirVersion()) {
			weights[s] = max(weights[s], e.q())
		}
	}
	for _, s := range []int{exact, family, anything} {
		if q, is := weights[s]; is {
			return q
		}
	}
	return 0
}

// PrefersHTML tells whether a client would rather have a page than FHIR, as a
// browser does; one to whom both are as welcome gets the page.
func PrefersHTML(h http.Header) bool {
	html := weight(h, "text/html")
	return html > 0 && html >= weight(h, jsonTypes...)
}

// How exactly a range of Accept names a media type.
const (
	anything = iota + 1
	family
	exact
)

// holds says how exactly a range names a media type, 0 if not at all.
func (e element) holds(names []string) int {
	major, _, _ := strings.Cut(names[0], "/")
	switch {
	case slices.Contains(names, e.value):
		return exact
	case e.value == major+"/*":
		return family
	case e.value == "*/*":
		return anything
	}
	return 0
}

// Readable checks that a client can read what we write, FHIR R4 as JSON. Who says
// nothing can; _format stands above Accept (FHIR R4, "General Parameters").
func Readable(r *http.Request) error {
	if asked, format := formatOf(r.URL.RawQuery); asked {
		media, params, err := mime.ParseMediaType(format)
		if err == nil && (media == "json" || slices.Contains(jsonTypes, media)) && !otherRelease(params["fhirversion"]) {
			return nil
		}
		return refuse(NotAcceptable, outcome.NotSupported, "_format: %s is not what this server writes: that is FHIR %s as JSON, _format=json", outcome.Quote(format), release)
	}
	if weight(r.Header, jsonTypes...) > 0 {
		return nil
	}
	return unreadable(r.Header, "this server")
}

// PrefersResource tells whether who reads a Binary wants the resource as FHIR, and
// not its content, whose media type is given in lower case, without parameters
// (FHIR R4, "Serving Binary Resources using the RESTful API"). _format always asks
// for FHIR. Accept does where it names FHIR; application/json does if nothing else
// is accepted that the content is. Any other wish gets the content, whatever it is.
func PrefersResource(r *http.Request, media string) (bool, error) {
	if asked, _ := formatOf(r.URL.RawQuery); asked {
		return true, Readable(r)
	}
	fhir, content := named(r.Header, jsonTypes[0]), weight(r.Header, media)
	switch {
	case fhir > 0:
		return fhir >= content, nil
	case content > 0:
		return false, nil
	case named(r.Header, jsonTypes[1]) > 0:
		return !strings.HasSuffix(media, "+json"), nil
	case slices.ContainsFunc(list(r.Header, "Accept"), unwritten):
		return true, unreadable(r.Header, "this server")
	}
	return false, nil
}

// named is how welcome a media type is to a client that names it itself.
func named(h http.Header, name string) (q float64) {
	for _, e := range list(h, "Accept") {
		if e.value == name && !otherRelease(e.fhirVersion()) {
			q = max(q, e.q())
		}
	}
	return q
}

// unwritten tells whether a range of Accept asks for FHIR in a form, or of a
// release, that is not written here.
func unwritten(e element) bool {
	return e.q() > 0 && (e.value == "application/fhir+xml" || e.value == jsonTypes[0] && otherRelease(e.fhirVersion()))
}

// formatOf is the parameter _format. The + of a media type that was not escaped
// has become a space.
func formatOf(raw string) (asked bool, format string) {
	query, _ := url.ParseQuery(raw) // what is broken is refused by whoever reads the rest
	return query.Has("_format"), strings.Replace(query.Get("_format"), "application/fhir json", "application/fhir+json", 1)
}

// unreadable says what is wrong with an Accept that leaves us nothing to say.
func unreadable(h http.Header, who string) error {
	accept := outcome.Quote(strings.Join(h.Values("Accept"), ", "))
	for _, e := range list(h, "Accept") {
		if v := e.fhirVersion(); e.holds(jsonTypes) > 0 && otherRelease(v) {
			return refuse(NotAcceptable, outcome.NotSupported, `Accept: %s asks for FHIR %s, and %s answers in FHIR R4 only: send "Accept: application/fhir+json; fhirVersion=%s"`,
				accept, outcome.Quote(v), who, release)
		}
	}
	return refuse(NotAcceptable, outcome.NotSupported, `Accept: %s names nothing that %s answers with: send "Accept: application/fhir+json"`, accept, who)
}

// accepted checks the Accept header of a kick-off (decisions.md 2).
func accepted(h http.Header) error {
	if len(list(h, "Accept")) == 0 {
		return refuse(Invalid, outcome.Required, `the header Accept is missing: send "Accept: application/fhir+json"`)
	}
	if weight(h, jsonTypes...) > 0 {
		return nil
	}
	return unreadable(h, "a kick-off")
}

// checkMedia checks what the headers say of a body, before any of it is read.
func checkMedia(h http.Header) error {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refuse(MediaType, outcome.NotSupported, "Content-Encoding: %s is not supported: send the body as it is", outcome.Quote(e))
	}
	c := h.Get("Content-Type")
	media, params, err := mime.ParseMediaType(c)
	if err != nil || !slices.Contains(jsonTypes, media) {
		return refuse(MediaType, outcome.NotSupported, `Content-Type: %s is not supported: send a Parameters resource as "Content-Type: application/fhir+json"`, outcome.Quote(c))
	}
	if otherRelease(params["fhirversion"]) {
		return refuse(MediaType, outcome.NotSupported, `Content-Type: %s is another release of FHIR than R4: send a Parameters resource as "Content-Type: application/fhir+json; fhirVersion=%s"`, outcome.Quote(c), release)
	}
	return nil
}
