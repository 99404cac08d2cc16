package store

import "strings"

// The private files of a durable snapshot lie in a directory that is called by
// its id. To know the id of a job is to be allowed to read its files, and errors
// end up in logs: none that may name such a file leaves the store with the id.

func (db *DB) privateDir(id string) string { return db.fs.PathJoin(db.jobsDir(), id) }

// removePrivate removes the private files of a snapshot, if it has any.
func (db *DB) removePrivate(id string) error {
	return hide(db.fs.RemoveAll(db.privateDir(id)), id)
}

// hidden is an error without the id in its text.
type hidden struct {
	error
	id string
}

func hide(err error, id string) error {
	if err == nil {
		return nil
	}
	return hidden{err, id}
}

func (h hidden) Error() string { return strings.ReplaceAll(h.error.Error(), h.id, "…") }

func (h hidden) Unwrap() error { return h.error }
