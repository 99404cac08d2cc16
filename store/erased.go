package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/store/disk"
	"tidemark/store/fhir"
)

// erasedFile is the list of what was erased. It lies beside the index, not in
// it, so that it outlives reindex and can go along with backups. It names nobody: an entry
// is a keyed hash, which only this list's key could confirm.
const erasedFile = "erased"

// An erasedList tells what must never be stored again. It is replaced, never
// changed, so that every change can be asked about without a lock.
type erasedList struct {
	key  []byte
	list map[erasedHash]struct{}
}

type erasedHash [16]byte

// erasedLine is one line of the file: the key first, then entries, and what was
// done about them.
type erasedLine struct {
	Key    []byte     `json:"key,omitempty"`
	Hash   string     `json:"hash,omitempty"`
	At     *time.Time `json:"at,omitempty"`
	Erased *Erased    `json:"erased,omitempty"`
}

// An Erasure names what is to be erased.
type Erasure struct {
	Key fhir.Key
	// Compartment: all that lies in the compartment of this Patient, too, but for
	// Groups, which are about all their members.
	Compartment bool
}

// hashOf is the entry of a resource, compartment that of a Patient's
// compartment.
func (l *erasedList) hashOf(kind byte, name string) (h erasedHash) {
	m := hmac.New(sha256.New, l.key)
	m.Write([]byte{kind})
	_, _ = io.WriteString(m, name) // a hash takes everything
	copy(h[:], m.Sum(nil))
	return h
}

const (
	erasedResource    = 'r'
	erasedCompartment = 'c'
)

func (l *erasedList) entry(e Erasure) erasedHash {
	if e.Compartment {
		return l.hashOf(erasedCompartment, e.Key.ID)
	}
	return l.hashOf(erasedResource, e.Key.String())
}

// refuses tells whether a resource with these compartments was erased.
func (l *erasedList) refuses(key fhir.Key, patients []string) bool {
	if l == nil || len(l.list) == 0 {
		return false
	}
	return l.has(l.hashOf(erasedResource, key.String())) || l.takes(key, patients)
}

// takes tells whether a resource goes with the compartment of an erased Patient.
func (l *erasedList) takes(key fhir.Key, patients []string) bool {
	return key.Type == patientResource && l.has(l.hashOf(erasedCompartment, key.ID)) || key.Type != groupType && l.names(patients)
}

// names tells whether one of some Patients was erased with its compartment.
func (l *erasedList) names(patients []string) bool {
	return slices.ContainsFunc(patients, func(id string) bool { return l.has(l.hashOf(erasedCompartment, id)) })
}

func (l *erasedList) refusesChange(ch *Change) bool {
	if ch.Dead != nil && l.refusesLetter(ch.Dead) {
		return true
	}
	return ch.named() && l.refuses(ch.Key, ch.Patients)
}

// refusesLetter tells whether a dead letter is about what was erased. It was
// never decoded, so its bytes are searched for what they may say of themselves,
// and of the patients they are about.
func (l *erasedList) refusesLetter(d *DeadLetter) bool {
	if l == nil || len(l.list) == 0 {
		return false
	}
	if key, err := fhir.ParseKey(string(d.Key)); err == nil && l.refuses(key, nil) {
		return true
	}
	value := slashes.ReplaceAll(d.Value, []byte{'/'})
	types := distinct(saysType, value)
	for id := range distinct(saysID, value) {
		for typ := range types {
			if key, err := fhir.ParseKey(typ + "/" + id); err == nil && l.refuses(key, nil) {
				return true
			}
		}
	}
	for id := range distinct(saysPatient, value) {
		if l.has(l.hashOf(erasedCompartment, id)) {
			return true
		}
	}
	return false
}

// distinct is what the group of a pattern finds, each once: a record may repeat
// itself ten thousand times.
func distinct(pattern *regexp.Regexp, text []byte) map[string]struct{} {
	found := map[string]struct{}{}
	for _, m := range pattern.FindAllSubmatch(text, -1) {
		found[string(m[1])] = struct{}{}
	}
	return found
}

var (
	slashes     = regexp.MustCompile(`\\/|\\u002[fF]`) // ways to write one in JSON
	saysType    = regexp.MustCompile(`"resourceType"\s*:\s*"([A-Za-z]+)"`)
	saysID      = regexp.MustCompile(`"id"\s*:\s*"([A-Za-z0-9.-]{1,64})"`)
	saysPatient = regexp.MustCompile(`Patient/([A-Za-z0-9.-]{1,64})`)
)

func (l *erasedList) has(h erasedHash) bool { _, ok := l.list[h]; return ok }

var patientResource, _ = fhir.ParseType("Patient")

// readErased reads the list of a store, or one that was kept elsewhere; none is
// an empty one. A line that a crash cut short is passed over: what it said was
// not acknowledged.
func readErased(fs vfs.FS, path string) (*erasedList, error) {
	l := &erasedList{list: map[erasedHash]struct{}{}}
	text, err := disk.Read(fs, path)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of what was erased: %w", err)
	}
	lines := bytes.SplitAfter(text, newline)
	for i, line := range lines {
		if !bytes.HasSuffix(line, newline) {
			break
		}
		var e erasedLine
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("%w: %s, line %d: without it nothing keeps erased data from coming back: restore the file from a backup", ErrCorrupt, path, i+1)
		}
		if e.Key != nil {
			l.key = e.Key
		}
		if e.Hash != "" {
			var h erasedHash
			if n, err := hex.Decode(h[:], []byte(e.Hash)); err != nil || n != len(h) || l.key == nil {
				return nil, fmt.Errorf("%w: %s, line %d: without it nothing keeps erased data from coming back: restore the file from a backup", ErrCorrupt, path, i+1)
			}
			l.list[h] = struct{}{}
		}
	}
	return l, nil
}

// appendErased adds lines to the list's file, durably. Earlier lines are kept
// as they are: the file is written anew under another name, for a torn line at
// its end must not stay before a good one.
func appendErased(fs vfs.FS, dir string, lines ...erasedLine) error {
	path := fs.PathJoin(dir, erasedFile)
	text, err := disk.Read(fs, path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write the list of what was erased: %w", err)
	}
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	for _, l := range lines {
		text = append(append(text, mustJSON(l)...), '\n')
	}
	if err := disk.Replace(fs, dir, erasedFile, text); err != nil {
		return fmt.Errorf("write the list of what was erased: %w", err)
	}
	return nil
}

// addErased puts erasures on the list: from now on nothing of them is stored any
// more.
func (db *DB) addErased(list ...Erasure) error {
	old := db.erased.Load()
	next := &erasedList{key: old.key, list: map[erasedHash]struct{}{}}
	var lines []erasedLine
	if next.key == nil {
		next.key = make([]byte, 32)
		_, _ = rand.Read(next.key) // never fails
		lines = append(lines, erasedLine{Key: next.key})
	}
	for h := range old.list {
		next.list[h] = struct{}{}
	}
	now := time.Now().UTC()
	for _, e := range list {
		h := next.entry(e)
		if next.has(h) {
			continue // asked for again: perhaps a crash cut it short
		}
		next.list[h] = struct{}{}
		lines = append(lines, erasedLine{Hash: hex.EncodeToString(h[:]), At: &now})
	}
	if len(next.list) == len(old.list) {
		return nil
	}
	if err := appendErased(db.fs, db.dir, lines...); err != nil {
		return err
	}
	db.erased.Store(next)
	return nil
}

type erasedPointer = atomic.Pointer[erasedList]
