package decode

import (
	"bytes"

	"tidemark/store/compact"
	"tidemark/store/fhir"
)

// rowDepth is how deep the columns of a row lie: in after, in a CloudEvent's data, in what a
// converter wraps.
const rowDepth = 4

// An object is one whose members, and those within them, were noted when its document was
// validated. To read some of them is not to pass by the others: one of them is a resource as
// text, mostly, which is most of the document and takes long to pass by.
type object struct {
	json   value        // the document
	fields []fhir.Field // of the object, each before those within it
}

// A member is one of an object's; the zero member: there is none, or it is null.
type member struct {
	value
	in object // what it has, if it is an object
}

// fields validates JSON of any kind. The scanner's errors are ours and hold nothing of it.
func (c *changes) fields(src []byte) (o object, err error) {
	s := c.scanners.Get().(*fhir.Scanner)
	defer c.scanners.Put(s)
	o.json, o.fields, err = s.Fields(src, rowDepth)
	return o, err
}

// object is a record's value as an object; it is not null.
func (c *changes) object(rec Record) (object, error) {
	if len(rec.Value) == 0 {
		return object{}, refuse(rec, reasonEmpty)
	}
	o, err := c.fields(rec.Value)
	switch {
	case err != nil:
		return object{}, refuse(rec, "value "+err.Error())
	case !o.json.isObject():
		return object{}, refuse(rec, reasonNoObject)
	}
	return o, nil
}

// read takes members by their names, into places in the same order. What is null is as good
// as missing. The answer is false if one of them comes twice: readers differ on which counts.
func (o object) read(names []string, into []member) bool {
	return o.readAs(names, into, func(name []byte, wanted string) bool { return string(name) == wanted })
}

// readFold is read for names in whatever case of letters.
func (o object) readFold(names []string, into []member) bool {
	return o.readAs(names, into, func(name []byte, wanted string) bool { return bytes.EqualFold(name, []byte(wanted)) })
}

func (o object) readAs(names []string, into []member, is func(name []byte, wanted string) bool) bool {
	clear(into)
	once := true
	for rest := o.fields; len(rest) > 0; {
		f, within := rest[0], 1
		for within < len(rest) && rest[within].Depth > f.Depth {
			within++
		}
		name := compact.Plain(nil, o.json[f.Name:f.Colon])
		for i, wanted := range names {
			if !is(name, wanted) {
				continue
			}
			once = once && into[i].value == nil
			into[i] = member{value: o.json[f.Colon+1 : f.End]}
			if into[i].isObject() {
				into[i].in = object{o.json, rest[1:within]}
			}
		}
		rest = rest[within:]
	}
	for i := range into {
		if into[i].none() {
			into[i] = member{}
		}
	}
	return once
}

// member is one by name; the zero member if there is none.
func (o object) member(name string) member {
	var at [1]member
	o.read([]string{name}, at[:])
	return at[0]
}
