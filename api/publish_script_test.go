package api_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"tidemark/api"
	"tidemark/store/fhir"
)

// publishing reads the options of what is published:
// publish=(Organization,Location) public grace=1h every=1h.
func (e *script) publishing(t *testing.T, o *api.Options, a datadriven.CmdArg) bool {
	duration := func() time.Duration {
		d, err := time.ParseDuration(a.Vals[0])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	switch a.Key {
	case "publish":
		for _, name := range a.Vals {
			typ, ok := fhir.ParseType(name)
			if !ok && name != "none" {
				t.Fatal(name)
			}
			if ok {
				o.Publish.Types = append(o.Publish.Types, typ)
			}
		}
	case "public":
		o.Publish.Public = true
	case "every":
		o.Publish.Every = duration()
	case "grace":
		o.Publish.Grace = duration()
	default:
		return false
	}
	return true
}

// publish does what Run would have done when it was time. With options it is a
// restart with others first.
func (e *script) publish(t *testing.T, d *datadriven.TestData) string {
	var err error
	switch {
	case d.HasArg("sweep"):
		err = e.make.Sweep(t.Context())
	case d.HasArg("types"):
		e.o.Publish.Types = nil
		for _, a := range d.CmdArgs {
			a.Key = strings.Replace(a.Key, "types", "publish", 1)
			e.publishing(t, &e.o, a)
		}
		e.db = e.db.Restart()
		e.serve(t)
	default:
		err = e.make.Publish(t.Context(), d.HasArg("root"))
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

var (
	pageID    = regexp.MustCompile(`[0-9a-f]{32}`)
	pageURL   = regexp.MustCompile(`/publish/([0-9a-f]{32})`)
	bodyETag  = regexp.MustCompile(`(?m)^ETag: ("[0-9a-f]{32}")$`)
	maskedTag = "{etag}"
)

// maskPages writes {page1} for the first page that was seen, and {etag} for what
// depends on the ids.
func (e *script) maskPages(text string) string {
	for _, m := range pageURL.FindAllStringSubmatch(text, -1) {
		if !slices.Contains(e.pages, m[1]) {
			e.pages = append(e.pages, m[1])
		}
	}
	if m := bodyETag.FindStringSubmatch(text); m != nil && len(e.pages) > 0 {
		e.tag = m[1]
		text = strings.ReplaceAll(text, e.tag, maskedTag)
	}
	return pageID.ReplaceAllStringFunc(text, func(id string) string {
		if i := slices.Index(e.pages, id); i >= 0 {
			return fmt.Sprintf("{page%d}", i+1)
		}
		return id
	})
}

func (e *script) unmaskPages(text string) string {
	for i, id := range e.pages {
		text = strings.ReplaceAll(text, fmt.Sprintf("{page%d}", i+1), id)
	}
	return strings.ReplaceAll(text, maskedTag, e.tag)
}
