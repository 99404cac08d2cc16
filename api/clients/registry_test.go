package clients

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/google/go-cmp/cmp"

	"tidemark/api/smart"
	"tidemark/store/disk"
)

const publicKeys = `{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}`

func client(id string) Client {
	return Client{ID: id, Proof: Proof{KeySet: json.RawMessage(publicKeys)}, May: Permission{Levels: []string{"system"}, Scopes: "system/*.rs"}}
}

func mustOpen(t *testing.T, fs vfs.FS) *Registry {
	t.Helper()
	r, err := Open(fs, "store/access")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func serials(r *Registry) map[string]uint64 {
	all := map[string]uint64{}
	for _, c := range r.List() {
		all[c.ID] = c.Serial
	}
	return all
}

// TestSerials: none is ever given twice, that of a client that was removed last neither.
func TestSerials(t *testing.T) {
	fs := vfs.NewMem()
	r := mustOpen(t, fs)
	add, effect := must[Client](t), must[Effect](t)
	add(r.Add(client("a")))
	add(r.Add(client("b")))
	effect(r.Remove("b"))
	r = mustOpen(t, fs)
	if c := add(r.Add(client("b"))); c.Serial != 3 {
		t.Errorf("the second b has the serial %d", c.Serial)
	}
	if _, known := r.BySerial(2); known {
		t.Error("the first b is known")
	}
	if c, known := r.BySerial(3); !known || c.ID != "b" {
		t.Error("the second b is not known")
	}
	if _, err := r.Add(client("a")); !errors.Is(err, ErrTaken) {
		t.Errorf("a again: %v", err)
	}
	if _, err := r.Remove("c"); !errors.Is(err, ErrNone) {
		t.Errorf("nobody: %v", err)
	}
}

// TestLosses: who watches is told of every loss and of nothing else, and of what was
// lost while nobody watched.
func TestLosses(t *testing.T) {
	fs := vfs.NewMem()
	r := mustOpen(t, fs)
	add, effect := must[Client](t), must[Effect](t)
	for _, id := range []string{"a", "b", "c"} {
		add(r.Add(client(id)))
	}
	if e := effect(r.Disable("c")); !e.Pending || !slices.Equal(e.Lost, []uint64{3}) {
		t.Errorf("nobody watches: %+v", e)
	}
	if err := r.Enable("c"); err != nil { // what it has lost it does not get back
		t.Fatal(err)
	}
	r = mustOpen(t, fs)
	var told [][]uint64
	if err := r.Watch(func(s []uint64) (int, error) { told = append(told, s); return 2, nil }); err != nil {
		t.Fatal(err)
	}
	effect(r.Change("a", func(c *Client) { c.May.Levels = append(c.May.Levels, "patient") }))
	if err := r.Rotate("a", Proof{KeysURL: "https://a.example/keys"}); err != nil {
		t.Fatal(err)
	}
	if e := effect(r.Change("a", func(c *Client) { c.May.Scopes = "system/Patient.rs"; c.ID, c.Serial = "x", 9 })); e.Pending || e.Ended != 2 {
		t.Errorf("narrowed: %+v", e)
	}
	effect(r.Disable("b"))
	effect(r.Disable("b"))
	if err := r.Enable("b"); err != nil {
		t.Fatal(err)
	}
	effect(r.Remove("b"))
	if d := cmp.Diff([][]uint64{{3}, {1}, {2}, {2}}, told); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	failing := errors.New("no")
	if err := r.Watch(func([]uint64) (int, error) { return 0, failing }); err != nil { // nothing is to be told
		t.Fatal(err)
	}
	if e, err := r.Disable("a"); !errors.Is(err, failing) || !e.Pending {
		t.Errorf("jobs that cannot be ended: %+v, %v", e, err)
	}
	told = nil
	r = mustOpen(t, fs)
	if err := r.Watch(func(s []uint64) (int, error) { told = append(told, s); return 2, nil }); err != nil || len(told) != 1 {
		t.Errorf("not told again: %v, %v", told, err)
	}
	r, told = mustOpen(t, fs), nil
	if err := r.Watch(func(s []uint64) (int, error) { told = append(told, s); return 0, nil }); err != nil || told != nil {
		t.Errorf("told again: %v, %v", told, err)
	}
}

// TestConfigure: clients of the configuration have serials as long as they stand there.
func TestConfigure(t *testing.T) {
	fs := vfs.NewMem()
	r := mustOpen(t, fs)
	effect := must[Effect](t)
	must[Client](t)(r.Add(client("mine")))
	narrow := client("a")
	narrow.May.Scopes = "system/Patient.rs"
	for _, step := range []struct {
		name string
		list []Client
		lost []uint64
		want map[string]uint64
	}{
		{"two", []Client{client("a"), client("b")}, nil, map[string]uint64{"mine": 1, "a": 2, "b": 3}},
		{"the same", []Client{client("b"), client("a")}, nil, map[string]uint64{"mine": 1, "a": 2, "b": 3}},
		{"narrowed, gone", []Client{narrow}, []uint64{2, 3}, map[string]uint64{"mine": 1, "a": 2}},
		{"back", []Client{narrow, client("b")}, nil, map[string]uint64{"mine": 1, "a": 2, "b": 4}},
	} {
		r = mustOpen(t, fs)
		e := effect(r.Configure(step.list))
		if d := cmp.Diff(step.want, serials(r)); d != "" || !slices.Equal(e.Lost, step.lost) {
			t.Errorf("%s: lost %v; (-want +got):\n%s", step.name, e.Lost, d)
		}
	}
	if _, err := r.Disable("a"); !errors.As(err, new(*ConfiguredError)) {
		t.Errorf("a client of the configuration: %v", err)
	}
	if _, err := r.Add(client("a")); !errors.As(err, new(*ConfiguredError)) {
		t.Errorf("the name of one of the configuration: %v", err)
	}
	_, err := r.Configure([]Client{client("mine"), client("z"), client("z"), {ID: "nothing"}})
	for _, want := range []string{`client "mine" stands in auth.clients of the configuration, and in store/access/clients.json`, `"z" stands there twice`, `client "nothing": it cannot prove itself`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
	if d := cmp.Diff(map[string]uint64{"mine": 1, "a": 2, "b": 4}, serials(r)); d != "" {
		t.Errorf("what is wrong has changed something:\n%s", d)
	}
}

// TestProver: who is disabled proves nothing, and the keys before a rotation neither.
func TestProver(t *testing.T) {
	r := mustOpen(t, vfs.NewMem())
	must[Client](t)(r.Add(client("a")))
	if c, ok := r.Prover("a"); !ok || len(c.Keys) != 1 || c.Serial != 1 {
		t.Errorf("%+v", c)
	}
	must[Effect](t)(r.Disable("a"))
	if _, ok := r.Prover("a"); ok {
		t.Error("who is disabled can prove himself")
	}
	text := NewSecret()
	p := must[Proof](t)(BySecret(text))
	if err := errors.Join(r.Enable("a"), r.Rotate("a", p)); err != nil {
		t.Fatal(err)
	}
	if c, ok := r.Prover("a"); !ok || c.Keys != nil {
		t.Error("the keys count after the rotation")
	}
	c, _ := r.ByID("a")
	if !c.CheckSecret(text) || c.CheckSecret(text+"x") || c.CheckSecret("") || new(Client).CheckSecret("") {
		t.Error("the secret is not told from others")
	}
	if len(text) < minSecret || text == NewSecret() || strings.Contains(string(must[[]byte](t)(ReadFile(r.fs, r.dir, clientsFile))), text) {
		t.Error("the secret is short, not random, or kept")
	}
	if _, err := BySecret("short"); err == nil {
		t.Error("a short secret is taken")
	}
}

// TestRules: all that is wrong is said at once.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Client)
		want   []string
	}{
		{"right", func(*Client) {}, nil},
		{"no permission yet", func(c *Client) { c.May = Permission{} }, nil},
		{"id", func(c *Client) { c.ID = "a:b" }, []string{"its id is not 1 to 255"}},
		{"long id", func(c *Client) { c.ID = strings.Repeat("a", 256) }, []string{"its id is not 1 to 255"}},
		{"space", func(c *Client) { c.ID = "a b" }, []string{"its id is not 1 to 255"}},
		{"no proof", func(c *Client) { c.Proof = Proof{} }, []string{"it cannot prove itself"}},
		{"two proofs", func(c *Client) { c.KeysURL = "https://a.example/" }, []string{"several ways"}},
		{"plain URL", func(c *Client) { c.Proof = Proof{KeysURL: "http://a.example/"} }, []string{"scheme is not https"}},
		{"private", func(c *Client) { c.KeySet = json.RawMessage(`{"keys":[{"kty":"oct","kid":"1","k":"c2VjcmV0"}]}`) }, []string{"private or a secret"}},
		{"levels", func(c *Client) { c.May.Levels = []string{"all", "system"} }, []string{`no level "all"`}},
		{"group without Groups", func(c *Client) { c.May.Levels = []string{"group"} }, []string{"wants Groups"}},
		{"Groups without group", func(c *Client) { c.May.Groups = []string{"a"} }, []string{"with the level group only"}},
		{"Groups", func(c *Client) { c.May.Levels, c.May.Groups = []string{"group"}, []string{"a b", "*"} }, []string{"is no id of a Group"}},
		{"scope", func(c *Client) { c.May.Scopes = "system/*.rs user/*.rs system/Patient.c" }, []string{`scope "user/*.rs" grants nothing`, `scope "system/Patient.c" grants nothing`}},
		{"no scope", func(c *Client) { c.May.Scopes = "" }, []string{"no scope that lets export"}},
		{"half a scope", func(c *Client) { c.May.Scopes = "system/*.r" }, []string{"no scope that lets export"}},
		{"no Group", func(c *Client) {
			c.May = Permission{Levels: []string{"group"}, Groups: []string{"*"}, Scopes: "system/Patient.rs"}
		}, []string{"add system/Group.rs"}},
		{"many scopes", func(c *Client) { c.May.Scopes = strings.Repeat("system/*.rs ", 201) }, []string{"201 scopes"}},
		{"all", func(c *Client) { *c = Client{May: Permission{Levels: []string{"x"}, Scopes: "y"}} }, []string{"its id", "prove itself", `no level "x"`, `scope "y"`}},
	} {
		a := client("a")
		c.change(&a)
		err := Rules{}.Check(&a)
		var got []string
		if err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: no %q in %q", c.name, want, got[i])
			}
		}
	}
	a := client("a")
	a.Proof = Proof{}
	if err := (Rules{External: true}).Check(&a); err != nil {
		t.Errorf("another server's client: %v", err)
	}
}

// TestCrash: at whatever write the machine stops, the registry is the one before a verb
// or the one after, and after it for good once the verb has returned. Serials never fall.
func TestCrash(t *testing.T) {
	for _, percent := range []int{0, 50, 100} {
		mem := vfs.NewCrashableMem()
		type moment struct {
			fs   *vfs.MemFS
			done int // verbs that have returned
		}
		var moments []moment
		done := 0
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, uint64(len(moments))))})
				moments = append(moments, moment{clone, done})
			}
			return nil
		}))
		if err := errors.Join(mem.MkdirAll("store", 0o700), disk.SyncDir(mem, ".")); err != nil {
			t.Fatal(err)
		}
		r := mustOpen(t, fs)
		verbs := []func() error{
			func() error { _, err := r.Add(client("a")); return err },
			func() error { _, err := r.Add(client("b")); return err },
			func() error { _, err := r.Disable("a"); return err },
			func() error { _, err := r.Remove("b"); return err },
			func() error { _, err := r.Configure([]Client{client("b")}); return err },
		}
		states := []string{state(r)}
		for _, verb := range verbs {
			if err := verb(); err != nil {
				t.Fatal(err)
			}
			done++
			states = append(states, state(r))
		}
		if len(moments) < 5*len(verbs) {
			t.Errorf("only %d writes were seen", len(moments))
		}
		moments = append(moments, moment{mem.CrashClone(vfs.CrashCloneCfg{}), done})
		for i, m := range moments {
			got := state(mustOpen(t, m.fs))
			if got != states[m.done] && got != states[min(m.done+1, done)] {
				t.Errorf("%d %%, write %d, after %d verbs:\n%s", percent, i, m.done, got)
			}
		}
	}
}

// state is all that a registry would write.
func state(r *Registry) string {
	text, _ := json.Marshal(r.file)
	return string(text)
}

// TestFile: what cannot be understood is refused, and the error says which file it is.
func TestFile(t *testing.T) {
	good := `{"version":1,"last":2,"clients":[{"id":"a","serial":1,"jwks":` + publicKeys + `,"may":{}}]}`
	for _, c := range []struct{ name, text, want string }{
		{"good", good, ""},
		{"version", `{"version":4}`, "has version 4, this program knows 3"},
		{"withheld", strings.Replace(good, `"may":{}`, `"may":{"withhold":{"elements":["Claim.future"]}}`, 1), "does not understand what is withheld"},
		{"cut", good[:len(good)-3], "is damaged"},
		{"serial", strings.Replace(good, `"last":2`, `"last":0`, 1), `the client "a" cannot be`},
		{"keys", strings.Replace(good, "keys", "kyes", 1), `the client "a" cannot be`},
		{"twice", strings.Replace(good, `"clients":[`, `"clients":[{"id":"a","serial":2},`, 1), `the client "a" cannot be`},
	} {
		fs := vfs.NewMem()
		if err := ReplaceFile(fs, "store/access", clientsFile, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(fs, "store/access")
		if (c.want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "store/access/clients.json")) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestPrivate: on a disk nobody else can read any of it, and what a crash has left of it goes.
func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "access")
	if err := ReplaceFile(vfs.Default, dir, tokenFile+".new", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	r := must[*Registry](t)(Open(vfs.Default, dir))
	if names := must[[]string](t)(vfs.Default.List(dir)); len(names) > 0 {
		t.Errorf("%q are left of a crash", names)
	}
	must[Client](t)(r.Add(client("a")))
	must[[]smart.Secret](t)(Secrets(vfs.Default, dir))
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, clientsFile): 0o600, filepath.Join(dir, tokenFile): 0o600} {
		if at := must[os.FileInfo](t)(os.Stat(path)); at.Mode().Perm() != want {
			t.Errorf("%s is %v", filepath.Base(path), at.Mode())
		}
	}
}

// TestTokenSecrets: one is made, kept and replaced; the one before counts for as long as
// a token can live.
func TestTokenSecrets(t *testing.T) {
	fs := vfs.NewMem()
	list := must[[]smart.Secret](t)
	first := list(Secrets(fs, "store/access"))
	if d := cmp.Diff(first, list(Secrets(fs, "store/access"))); d != "" || len(first) != 1 {
		t.Fatalf("not kept: %s", d)
	}
	now := time.Now()
	second := list(RotateSecrets(fs, "store/access", now, false))
	if len(second) != 2 || second[1].ID != first[0].ID {
		t.Error("the one before counts no more")
	}
	third := list(RotateSecrets(fs, "store/access", now.Add(time.Minute), false))
	if len(third) != 3 {
		t.Errorf("%d count a minute later", len(third))
	}
	fourth := list(RotateSecrets(fs, "store/access", now.Add(24*time.Hour+time.Second*30), false))
	if len(fourth) != 3 || fourth[2].ID != second[0].ID {
		t.Errorf("%d count when the first has signed nothing for longer than a token lives", len(fourth))
	}
	if last := list(RotateSecrets(fs, "store/access", now, true)); len(last) != 1 || last[0].ID == fourth[0].ID {
		t.Error("one that somebody knows counts on")
	}
	if err := ReplaceFile(fs, "store/access", tokenFile, []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := Secrets(fs, "store/access"); err == nil || !strings.Contains(err.Error(), "token.keys is damaged") {
		t.Errorf("damaged: %v", err)
	}
}

// TestReadersMeanwhile: who reads while it is changed sees a whole client.
func TestReadersMeanwhile(t *testing.T) {
	r := mustOpen(t, vfs.NewMem())
	must[Client](t)(r.Add(client("a")))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c, ok := r.ByID("a"); !ok || (c.Name == "wide") != c.May.Level("patient") {
					t.Errorf("half a change: %+v", c)
					return
				}
			}
		})
	}
	for i := range 50 {
		must[Effect](t)(r.Change("a", func(c *Client) {
			c.Name, c.May.Levels = "wide", []string{"system", "patient"}
			if i%2 == 1 {
				c.Name, c.May.Levels = "", []string{"system"}
			}
		}))
	}
	close(stop)
	readers.Wait()
}
