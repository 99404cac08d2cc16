package clients

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/api/outcome"
	"tidemark/api/smart"
	"tidemark/store/disk"
)

// A Registry keeps the clients of a server in a file, and is asked at every request.
//
// Verbs that change it are durable when they return. Which clients have lost something
// stands in the same write as the loss, until Lost has been told: a crash between the
// two, or a change while nobody serves, ends their jobs at the next start.
type Registry struct {
	// Rules of what is a right client; set before the first verb.
	Rules Rules

	fs  vfs.FS
	dir string

	now atomic.Pointer[view] // what readers see; never changed, only replaced

	mu   sync.Mutex // held by the verbs, and while lost is told
	file file
	lost func(serials []uint64) (jobs int, err error)
}

// A view is the clients at an instant.
type view struct {
	list     []Client // by id
	byID     map[string]int
	bySerial map[uint64]int
	keys     map[string]smart.Keys // parsed, by id
}

// An Effect is what a verb did beside what was asked for.
type Effect struct {
	Lost    []uint64 // serials of the clients that have lost something
	Ended   int      // jobs that ended for it
	Pending bool     // nobody serves: their jobs end at the next start
}

// Errors of verbs.
var (
	ErrNone  = errors.New("there is no such client")
	ErrTaken = errors.New("there is a client of this name already")
)

// A ConfiguredError says that a client is changed in the configuration only.
type ConfiguredError struct{ ID string }

func (e *ConfiguredError) Error() string {
	return fmt.Sprintf("the client %s stands in the configuration (auth.clients): change it there, and start the server again", outcome.Quote(e.ID))
}

// Open reads the registry in dir, an empty one where there is none yet, and removes what
// a crash has left there. Who calls it has the store's lock.
func Open(fs vfs.FS, dir string) (*Registry, error) {
	if err := disk.Tidy(fs, dir); err != nil {
		return nil, fmt.Errorf("remove what a crash has left of clients: %w", err)
	}
	r := &Registry{fs: fs, dir: dir, file: file{Version: fileVersion}}
	data, err := ReadFile(fs, dir, clientsFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if r.file, err = parseFile(fs.PathJoin(dir, clientsFile), data); err != nil {
			return nil, err
		}
	}
	r.now.Store(newView(r.file.Clients))
	return r, nil
}

// ByID is the client that calls itself so. What it points to is not to be changed.
func (r *Registry) ByID(id string) (Client, bool) {
	v := r.now.Load()
	i, ok := v.byID[id]
	if !ok {
		return Client{}, false
	}
	return v.list[i], true
}

// BySerial is the client with a serial, as long as it exists.
func (r *Registry) BySerial(serial uint64) (Client, bool) {
	v := r.now.Load()
	i, ok := v.bySerial[serial]
	if !ok {
		return Client{}, false
	}
	return v.list[i], true
}

// List is all clients, by their ids.
func (r *Registry) List() []Client { return slices.Clone(r.now.Load().list) }

// Prover is a client as it proves itself by a signature, if it may do anything: what a
// smart.Verifier asks for.
func (r *Registry) Prover(id string) (smart.Client, bool) {
	v := r.now.Load()
	i, ok := v.byID[id]
	if !ok || v.list[i].Disabled {
		return smart.Client{}, false
	}
	c := &v.list[i]
	return smart.Client{ID: c.ID, Serial: c.Serial, Keys: v.keys[id], KeysURL: c.KeysURL}, true
}

// Watch tells lost of clients that lose something, from now on and of those that did
// while nobody watched. It says how many jobs it has ended, and must call no verb; if it
// fails, it is told again with the next loss, or after the next start.
func (r *Registry) Watch(lost func(serials []uint64) (jobs int, err error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = lost
	_, err := r.settle(nil)
	return err
}

// Add makes a client and gives it a serial.
func (r *Registry) Add(c Client) (Client, error) {
	c.Configured = false
	if err := r.Rules.Check(&c); err != nil {
		return Client{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, taken := r.ByID(c.ID); taken && old.Configured {
		return Client{}, &ConfiguredError{c.ID}
	} else if taken {
		return Client{}, fmt.Errorf("%s: %w", outcome.Quote(c.ID), ErrTaken)
	}
	next := r.file.clone()
	next.admit(c)
	if err := r.save(next); err != nil {
		return Client{}, err
	}
	c, _ = r.ByID(c.ID)
	return c, nil
}

// Change lets f change a client, but not its id and its serial.
func (r *Registry) Change(id string, f func(*Client)) (Effect, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.file.clone()
	c, err := next.own(id)
	if err != nil {
		return Effect{}, err
	}
	old := c.clone()
	f(c)
	c.ID, c.Serial, c.Configured = old.ID, old.Serial, false
	if err := r.Rules.Check(c); err != nil {
		return Effect{}, err
	}
	return r.commit(next, lostBy(&old, c)...)
}

// Rotate gives a client another way to prove itself; the old one counts no more. It takes
// nothing from its jobs.
func (r *Registry) Rotate(id string, p Proof) error {
	_, err := r.Change(id, func(c *Client) { c.Proof = p })
	return err
}

// Disable lets a client do nothing until it is enabled, and ends what it has begun.
func (r *Registry) Disable(id string) (Effect, error) {
	return r.Change(id, func(c *Client) { c.Disabled = true })
}

// Enable lets a client do again what it may.
func (r *Registry) Enable(id string) error {
	_, err := r.Change(id, func(c *Client) { c.Disabled = false })
	return err
}

// Remove forgets a client and ends what it has begun. Its serial is never given again.
func (r *Registry) Remove(id string) (Effect, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.file.clone()
	c, err := next.own(id)
	if err != nil {
		return Effect{}, err
	}
	serial := c.Serial
	next.Clients = slices.DeleteFunc(next.Clients, func(c Client) bool { return c.Serial == serial })
	return r.commit(next, serial)
}

// Configure takes the clients of the configuration: a new one gets a serial, one that
// stands there no longer loses its own, so that one of the same name that comes back is
// another. What is wrong with any of them is told at once, and then nothing changes.
func (r *Registry) Configure(list []Client) (Effect, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.file.clone()
	next.Clients = slices.DeleteFunc(next.Clients, func(c Client) bool { return c.Configured })
	var faults []error
	var lost []uint64
	gone := maps.Clone(r.now.Load().byID)
	for _, c := range list {
		c.Configured, c.Disabled = true, false
		if err := r.Rules.Check(&c); err != nil {
			faults = append(faults, fmt.Errorf("auth.clients: %w", err))
		}
		old, known := r.ByID(c.ID)
		if slices.ContainsFunc(next.Clients, func(o Client) bool { return o.ID == c.ID }) {
			faults = append(faults, r.twice(c.ID, known && !old.Configured))
			continue
		}
		if !known {
			next.admit(c)
			continue
		}
		delete(gone, c.ID)
		c.Serial = old.Serial
		lost = append(lost, lostBy(&old, &c)...)
		next.Clients = append(next.Clients, c.clone())
	}
	if err := errors.Join(faults...); err != nil {
		return Effect{}, err
	}
	for _, i := range gone {
		if c := r.now.Load().list[i]; c.Configured {
			lost = append(lost, c.Serial)
		}
	}
	return r.commit(next, lost...)
}

// twice is the fault of a name that two have.
func (r *Registry) twice(id string, registered bool) error {
	if !registered {
		return fmt.Errorf("auth.clients: the client %s stands there twice", outcome.Quote(id))
	}
	return fmt.Errorf("the client %s stands in auth.clients of the configuration, and in %s, made by `tidemark client add`: give one of them another id, or stop the server and take the latter out with `tidemark client remove`",
		outcome.Quote(id), r.fs.PathJoin(r.dir, clientsFile))
}

// lostBy is the serial of a client from which a change takes something.
func lostBy(old, c *Client) []uint64 {
	if !old.Disabled && c.Disabled || !old.May.Within(&c.May) {
		return []uint64{old.Serial}
	}
	return nil
}

// commit makes a change durable and has the jobs ended of those who lost by it.
func (r *Registry) commit(next file, lost ...uint64) (Effect, error) {
	slices.Sort(lost)
	next.Ending = slices.Compact(slices.Sorted(slices.Values(append(next.Ending, lost...))))
	if err := r.save(next); err != nil {
		return Effect{}, err
	}
	return r.settle(lost)
}

// settle tells of losses that nobody was told of.
func (r *Registry) settle(lost []uint64) (Effect, error) {
	e := Effect{Lost: lost, Pending: len(lost) > 0}
	if r.lost == nil || len(r.file.Ending) == 0 {
		return e, nil
	}
	var err error
	if e.Ended, err = r.lost(slices.Clone(r.file.Ending)); err != nil {
		return e, fmt.Errorf("what was taken holds, but not all jobs were ended; start the server again: %w", err)
	}
	e.Pending = false
	next := r.file.clone()
	next.Ending = nil
	return e, r.save(next)
}

// save makes a state durable, and then seen.
func (r *Registry) save(next file) error {
	slices.SortFunc(next.Clients, func(a, b Client) int { return cmp.Compare(a.ID, b.ID) })
	data, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = ReplaceFile(r.fs, r.dir, clientsFile, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write the clients: %w", err)
	}
	r.file = next
	r.now.Store(newView(next.clone().Clients))
	return nil
}

func newView(list []Client) *view {
	v := &view{list: list, byID: map[string]int{}, bySerial: map[uint64]int{}, keys: map[string]smart.Keys{}}
	for i, c := range list {
		v.byID[c.ID], v.bySerial[c.Serial] = i, i
		if c.KeySet != nil {
			v.keys[c.ID], _ = smart.ParseKeys(c.KeySet) // checked when it came and when it was read
		}
	}
	return v
}

// file is what clients.json holds.
type file struct {
	Version int `json:"version"`
	// Last is the serial that was given last. It never falls, whoever is removed.
	Last    uint64   `json:"last"`
	Ending  []uint64 `json:"ending,omitempty"` // serials whose jobs have still to be ended
	Clients []Client `json:"clients"`
}

// Since 2 something can be withheld, since 3 people can have opted out: a program that did
// not know that would send all.
const (
	clientsFile = "clients.json"
	fileVersion = 3
)

func (f *file) clone() file {
	n := *f
	n.Ending, n.Clients = slices.Clone(f.Ending), make([]Client, 0, len(f.Clients)+1)
	for i := range f.Clients {
		n.Clients = append(n.Clients, f.Clients[i].clone())
	}
	return n
}

// admit takes a client in and gives it a serial.
func (f *file) admit(c Client) {
	f.Last++
	c.Serial = f.Last
	f.Clients = append(f.Clients, c.clone())
}

// own is a client that the verbs may change.
func (f *file) own(id string) (*Client, error) {
	i := slices.IndexFunc(f.Clients, func(c Client) bool { return c.ID == id })
	switch {
	case i < 0:
		return nil, fmt.Errorf("%s: %w", outcome.Quote(id), ErrNone)
	case f.Clients[i].Configured:
		return nil, &ConfiguredError{id}
	}
	return &f.Clients[i], nil
}

// parseFile reads clients.json and believes nothing that cannot be.
func parseFile(path string, data []byte) (f file, err error) {
	defer func() { f.Version = fileVersion }() // as it is written the next time
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%s is damaged: put it back from a copy, or move it away and add the clients anew; their jobs are then nobody's", path)
	}
	if f.Version < 1 || f.Version > fileVersion {
		return f, fmt.Errorf("%s has version %d, this program knows %d: use the program that wrote it, or a newer one", path, f.Version, fileVersion)
	}
	ids, serials := map[string]bool{}, map[uint64]bool{}
	for _, c := range f.Clients {
		_, err := smart.ParseKeys(c.KeySet)
		if err := c.May.Withhold.Fault(); err != nil {
			return f, fmt.Errorf("%s: of the client %s this program does not understand what is withheld from it: use the program that wrote it, or a newer one: %w", path, outcome.Quote(c.ID), err)
		}
		if c.KeySet != nil && err != nil || c.ID == "" || ids[c.ID] || c.Serial == 0 || c.Serial > f.Last || serials[c.Serial] {
			return f, fmt.Errorf("%s is damaged: the client %s cannot be as it stands there: put the file back from a copy", path, outcome.Quote(c.ID))
		}
		ids[c.ID], serials[c.Serial] = true, true
	}
	return f, nil
}

// clone shares nothing with the client.
func (c *Client) clone() Client {
	n := *c
	n.KeySet = slices.Clone(c.KeySet)
	n.May.Levels, n.May.Groups, n.May.Withhold = slices.Clone(c.May.Levels), slices.Clone(c.May.Groups), c.May.Withhold.Clone()
	return n
}

// Describe says for people what became of jobs.
func (e Effect) Describe() string {
	switch {
	case e.Pending:
		return "its jobs end when the server is started"
	case len(e.Lost) == 0:
		return "no job is touched"
	case e.Ended == 1:
		return "1 job has ended"
	}
	return fmt.Sprintf("%d jobs have ended", e.Ended)
}
