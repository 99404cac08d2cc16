package read

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/bulk"
	"tidemark/api/outcome"
)

// Own are resources of one type that this server says of itself: they come from no
// topic, never change while it runs, and stand in no export.
type Own struct {
	Type   string
	Bodies map[string][]byte // by id, compact JSON
}

// Own answers with one of them.
func (h *Handlers) Own(own Own) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := bulk.Readable(r); err != nil {
			return err
		}
		body, is := own.Bodies[chi.URLParam(r, "id")]
		if !is {
			return bulk.Refuse(bulk.Missing, outcome.NotFound, "this server has no %s of its own by that id: GET %s/%s lists those that it has", own.Type, h.Base, own.Type)
		}
		w.Header().Set("Cache-Control", "no-cache")
		Document(w, r, body)
		return nil
	}
}

// AllOwn searches among them as Groups does.
func (h *Handlers) AllOwn(own Own) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		return h.search(w, r, own.Type, func(each func(line []byte)) error {
			for _, body := range own.Bodies {
				each(body)
			}
			return nil
		})
	}
}

// Document answers with a resource whose bytes stand: HEAD, and 304 for who has it.
func Document(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.Header().Set("ETag", fmt.Sprintf(`W/"%08x"`, crc32.ChecksumIEEE(body)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}
