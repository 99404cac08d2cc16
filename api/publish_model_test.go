package api_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api"
	"tidemark/api/export"
	"tidemark/api/publish"
	"tidemark/api/withhold"
	"tidemark/store"
	"tidemark/store/fhir"
	"tidemark/store/storetest"
)

// A publisher is a real store on a disk in memory, what is published of it, and
// what should be in it.
type publisher struct {
	t      *testing.T
	r      *rand.Rand
	fs     vfs.FS
	types  []string
	policy withhold.Policy
	offset int64
	lives  map[string]string // by Type/id: the version
	erased map[string]bool

	db     *store.DB
	pages  *publish.Pages
	server *httptest.Server
	stop   func()
}

func (p *publisher) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *publisher) options() store.Options {
	return store.Options{FS: p.fs, CommitInterval: time.Millisecond, Allowance: time.Millisecond, SettleAfter: 50 * time.Millisecond, Cores: 1}
}

func (p *publisher) open() {
	p.t.Helper()
	db, err := store.Open("store", p.options())
	p.must(err)
	p.db = db
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	p.must(db.Discover(store.Discovery{Complete: true, Partitions: []store.Discovered{{Partition: partition, End: p.offset}}}))
	s := newServer(p.t, api.Options{
		Store: export.Of(db), FileMaxResources: 3, Withhold: p.policy,
		Publish: publish.Options{Types: typesOf(p.t, p.types), Public: true, Grace: time.Nanosecond},
	})
	p.pages = s.Pages()
	p.server = httptest.NewServer(s.Handler())
	p.stop = func() {
		p.stop = func() {} // a test that fails stops what it stopped
		p.server.Close()
		cancel()
		p.must(<-done)
		p.must(db.Close())
	}
	p.apply() // ready again
}

func typesOf(t testing.TB, names []string) (types []fhir.Type) {
	for _, n := range names {
		typ, ok := fhir.ParseType(n)
		if !ok {
			t.Fatal(n)
		}
		types = append(types, typ)
	}
	return types
}

// apply takes changes in and waits until the watermark has passed them.
func (p *publisher) apply(changes ...store.Change) {
	p.t.Helper()
	asked := p.db.Now()
	for i := range changes {
		changes[i].Offset, changes[i].Timestamp = p.offset, asked
		p.offset++
	}
	b := store.Batch{Partition: partition, Changes: changes, Next: p.offset, LeaderEpoch: -1, Asked: asked, End: p.offset}
	for {
		p.must(p.db.Apply(p.t.Context(), b))
		if st := p.db.Status(); st.Ready && st.Watermark >= asked && st.Gathering == 0 {
			return
		}
		time.Sleep(time.Millisecond) // the store's own time must pass
		b.Changes, b.Asked = nil, p.db.Now()
	}
}

// change makes some changes of what is published and of what is not.
func (p *publisher) change() {
	var list []store.Change
	for range 1 + p.r.IntN(4) {
		ref := []string{"Organization", "Location", "Endpoint", "Patient"}[p.r.IntN(4)] + "/" + strconv.Itoa(p.r.IntN(8))
		if p.erased[ref] {
			continue
		}
		if _, lives := p.lives[ref]; lives && p.r.IntN(3) == 0 {
			list = append(list, deletion(p.t, ref))
			delete(p.lives, ref)
			continue
		}
		version := int(p.offset) + len(list) + 1
		list = append(list, p.version(ref, version))
		p.lives[ref] = strconv.Itoa(version)
	}
	if p.r.IntN(10) == 0 {
		list = append(list, poison())
	}
	p.apply(list...)
}

// version is one of a resource, which is labelled if that is what it always is.
func (p *publisher) version(ref string, n int) store.Change {
	label, alias := "", `,"alias":["CANARY"]`
	if labelled(ref) {
		label = `,"security":[{"code":"R"}]`
	}
	kind, id, _ := strings.Cut(ref, "/")
	if kind == "Endpoint" { // has none
		alias = ""
	}
	c := scanned(p.t, `{"resourceType":%q,"id":%q,"meta":{"versionId":"%d"%s},"text":{"status":"generated","div":"CANARY %s."}%s}`, kind, id, n, label, ref, alias)
	c.Version = int64(n)
	return c
}

func labelled(ref string) bool { return strings.HasSuffix(ref, "/6") || strings.HasSuffix(ref, "/7") }

// policies are what a publisher is restarted under: by each of them what is labelled or
// every alias is withheld, by some both.
var policies = []withhold.Policy{
	{}, {Security: []string{"R"}}, {Elements: []string{"Organization.alias", "Location.alias"}}, {Security: []string{"R"}, Elements: []string{"Organization.alias", "Location.alias"}},
}

// lets tells whether a policy lets go what somebody was given.
func (p *publisher) lets(body []byte) bool {
	text := string(body)
	labels, alias := strings.Contains(text, `"security"`), strings.Contains(text, `"alias"`)
	return (!labels || len(p.policy.Security) == 0) && (!alias || len(p.policy.Elements) == 0)
}

// narrow is a restart under another policy: nothing that was given before is given now
// that it does not let go.
func (p *publisher) narrow(policy withhold.Policy, files map[string]bool) {
	p.stop()
	p.policy = policy
	p.open()
	reader := &consumer{t: p.t, base: p.server.URL}
	for url := range files {
		if status, _, body := reader.get(url, ""); !p.lets(body) || status != http.StatusOK && status != http.StatusGone && status != http.StatusNotFound {
			p.t.Errorf("with %v withheld %s is %d, %s", policy, url, status, body)
		}
	}
}

// erase takes something out that lives, and tells where it may not be found.
func (p *publisher) erase(files map[string]bool) {
	for ref := range p.lives {
		_, err := p.db.Erase(p.t.Context(), store.Erasure{Key: key(p.t, ref)})
		p.must(err)
		delete(p.lives, ref)
		p.erased[ref] = true
		p.apply()
		reader := &consumer{t: p.t, base: p.server.URL}
		for url := range files {
			if status, _, body := reader.get(url, ""); status == 200 && strings.Contains(string(body), "CANARY "+ref+".") {
				p.t.Errorf("%s still holds %s, which was erased", url, ref)
			}
		}
		return
	}
}

// want is what a consumer should have.
func (p *publisher) want() map[string]string {
	w := map[string]string{}
	for ref, version := range p.lives {
		if labelled(ref) && len(p.policy.Security) > 0 {
			continue
		}
		if typ, _, _ := strings.Cut(ref, "/"); strings.Contains(strings.Join(p.types, " ")+" ", typ+" ") {
			w[ref] = version
		}
	}
	return w
}

// Consumers that know nothing but the guide, fast and slow ones, have in the end
// exactly what lives, through deletions, merges, restarts, fresh roots, pages that
// are taken away, other types, other policies, erasures and an index made anew; and while
// nothing of the kind happens no change comes to them twice. Nothing is given that the
// policy of the moment does not let go.
func TestPublishedChain(t *testing.T) {
	for seed := range storetest.Rounds(uint64(6)) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { publishedChain(t, seed) })
	}
}

func publishedChain(t *testing.T, seed uint64) {
	p := &publisher{
		t: t, r: rand.New(rand.NewPCG(seed, 7)), fs: vfs.NewMem(), types: []string{"Location", "Organization"},
		lives: map[string]string{}, erased: map[string]bool{},
	}
	p.open()
	defer func() { p.stop() }()
	p.change()
	files := map[string]bool{}
	var consumers []*consumer
	for i := range 4 {
		consumers = append(consumers, &consumer{t: t, name: fmt.Sprintf("seed %d, consumer %d", seed, i), seen: files, lets: p.lets})
	}
	restart := func(between func()) {
		p.stop()
		between()
		p.open()
	}
	for range 250 {
		switch n := p.r.IntN(100); {
		case n < 40:
			p.change()
		case n < 65:
			p.must(p.pages.Publish(t.Context(), n < 45))
		case n < 68:
			p.must(p.pages.Sweep(t.Context()))
		case n < 70:
			restart(func() {})
		case n < 71:
			restart(func() { p.types = [][]string{{"Location", "Organization"}, {"Endpoint", "Organization"}}[p.r.IntN(2)] })
		case n < 72:
			p.erase(files)
		case n < 73:
			p.narrow(policies[p.r.IntN(len(policies))], files)
		case n < 74:
			restart(func() { p.must(store.Reindex(t.Context(), "store", p.options(), io.Discard)) })
		default:
			c := consumers[min(p.r.IntN(8), 3)] // the last is the fastest, the others are slow
			c.base = p.server.URL
			c.poll()
		}
	}
	p.change()
	p.must(p.pages.Publish(t.Context(), false))
	for _, c := range consumers {
		c.base = p.server.URL
		if !c.poll() {
			t.Fatal("there is no root")
		}
		if diff := cmp.Diff(p.want(), c.has); diff != "" {
			t.Errorf("%s (-lives +has):\n%s", c, diff)
		}
		t.Log(c)
	}
}
