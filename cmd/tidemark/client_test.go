package main

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/twmb/franz-go/pkg/kfake"

	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/store"
)

// clientRig runs commands on clients against one store.
type clientRig struct {
	*rig
	flags []string
	keys  string // a public key set
}

func newClientRig(t *testing.T, more ...string) *clientRig {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "fhir-changes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	r := &clientRig{rig: newRig(t, cluster.ListenAddrs()[0], "fhir-changes", nil, more...), keys: filepath.Join(t.TempDir(), "a")}
	r.flags = append([]string{"--set", "store.path=" + r.store(), "--set", "http.public_url=https://fhir.example.org/fhir"}, more...)
	if got, code := ends(t, "client", "keygen", "--out", r.keys); code != 0 {
		t.Fatalf("keygen: %s", got)
	}
	r.keys += ".jwks.json"
	return r
}

// client runs a command, which ends with an exit code.
func (r *clientRig) client(want int, args ...string) string {
	r.t.Helper()
	got, code := ends(r.t, slices.Concat([]string{"client", args[0]}, args[1:], r.flags)...)
	if code != want {
		r.t.Fatalf("client %v: exit %d, want %d: %s", args, code, want, got)
	}
	return got
}

// TestClientCommandLocked: who has the store open and answers no commands may be a server
// that has not begun to.
func TestClientCommandLocked(t *testing.T) {
	dir := t.TempDir()
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	got, code := ends(t, "client", "list", "--store", dir)
	if code != exitFailed {
		t.Errorf("exit %d", code)
	}
	contains(t, got, "run this again in a moment")
}

// TestClientCommand manages clients beside the running server, and then without it.
func TestClientCommand(t *testing.T) {
	t.Parallel() // it mostly waits
	r := newClientRig(t, "--set", "auth.clients=[{id: fixed, jwks_uri: 'https://a.example/keys'}]")
	r.start()
	got := r.client(0, "add", "research", "--jwks", r.keys, "--name", "The registry", "--level", "group", "--group", "diabetics",
		"--scope", "system/Group.rs", "--scope", "system/Observation.rs?category=laboratory&status=final,amended")
	contains(t, got, "research", "/fhir/.well-known/smart-configuration", "/fhir/auth/token", "The registry", "diabetics", "kid", "ES384", `"iss": "research"`,
		"'scope=system/Group.rs system/Observation.rs?category=laboratory&status=final,amended'")
	contains(t, r.client(1, "add", "research", "--jwks", r.keys), "there is a client of this name already")
	contains(t, r.client(1, "add", "fixed", "--jwks", r.keys), "auth.clients")
	contains(t, r.client(1, "disable", "fixed"), "auth.clients")
	contains(t, r.client(1, "add", "a b", "--jwks", r.keys, "--scope", "user/*.rs", "--group", "x"), "its id is not", "grants nothing", "with the level group only")
	contains(t, r.client(1, "add", "nobody"), "cannot prove itself")
	contains(t, r.client(1, "show", "nobody"), "there is no such client")
	var about aboutClient
	if err := json.Unmarshal([]byte(r.client(0, "show", "research", "--json")), &about); err != nil || about.Scope == "" || about.Method != "private_key_jwt" || len(about.Kids) != 1 {
		t.Errorf("%+v, %v", about, err)
	}
	r.secret()
	contains(t, r.client(0, "change", "research", "--level", "group,system"), "no job is touched")
	contains(t, r.client(0, "change", "research", "--scope", "system/Group.rs"), "0 jobs have ended")
	contains(t, r.client(0, "change", "research", "--withhold-security", "R", "--withhold-element", "Claim.total", "--withhold-filter", "Condition?code=1,2"), "0 jobs have ended")
	contains(t, r.client(0, "change", "research", "--withhold-security", ""), "no job is touched")
	contains(t, r.client(0, "change", "research", "--withhold-group", "opt-out"), "0 jobs have ended")
	contains(t, r.client(1, "change", "research", "--withhold-group", "*"), "is not the id of a Group")
	contains(t, r.client(0, "show", "research"), "withheld", "members of Group/opt-out, Condition?code=1,2, Claim.total")
	contains(t, r.client(0, "list"), "but for what is withheld")
	contains(t, r.client(1, "change", "research", "--withhold-element", "Claim.status"), "would be invalid")
	contains(t, r.client(0, "change", "research", "--level", "system", "--group", ""), "0 jobs have ended")
	contains(t, r.client(0, "list"), "  system: system/Group.rs", "nothing yet")
	contains(t, r.client(0, "change", "research", "--limit-jobs", "2", "--limit-bytes-per-day", "50GiB"), "no job is touched")
	contains(t, r.client(0, "change", "research", "--limit-jobs-per-day", "9", "--limit-jobs", "0"), "no job is touched")
	contains(t, r.client(0, "show", "research"), "limits", "9 jobs a day, 50GiB a day")
	contains(t, r.client(1, "change", "research", "--limit-jobs=-1"), "less than 0")
	contains(t, r.client(0, "change", "research", "--level", "group,system", "--group", "diabetics"), "no job is touched")
	contains(t, r.client(0, "disable", "research"), "0 jobs have ended")
	contains(t, r.client(0, "list"), "fixed", "in the configuration", "research", "disabled", "group, system (diabetics): system/Group.rs, but for what is withheld")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	contains(t, r.client(0, "enable", "research"), "no job is touched")
	contains(t, r.client(0, "remove", "research"), "its jobs end when the server is started")
	contains(t, r.client(0, "add", "research", "--jwks-uri", "https://a.example/keys"), "keys at", "https://fhir.example.org/fhir/auth/token", "none: see")
	registry, err := clients.Open(store.Disk, clients.Dir(store.Disk, r.store()))
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := registry.ByID("research"); c.Serial != 4 {
		t.Errorf("the second has the serial %d", c.Serial) // fixed, research, basic were before it
	}
	r.tokens()
}

// secret is shown once, and never again.
func (r *clientRig) secret() {
	r.t.Helper()
	var made aboutClient
	if err := json.Unmarshal([]byte(r.client(0, "add", "basic", "--secret", "--json")), &made); err != nil {
		r.t.Fatal(err)
	}
	path := filepath.Join(r.store(), "access", "clients.json")
	kept, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	shown := r.client(0, "list") + r.client(0, "show", "basic") + r.client(0, "show", "basic", "--json") + r.client(0, "list", "--json") + r.said()
	if made.Secret == "" || strings.Contains(shown+string(kept), made.Secret) || strings.Contains(shown, "hash") {
		r.t.Error("the secret, or its hash, is shown again")
	}
	contains(r.t, shown, "client_secret_basic")
	contains(r.t, r.client(0, "rotate", "basic", "--secret"), "counts no more", "client_secret  ")
	after, err := os.ReadFile(path)
	if err != nil || string(after) == string(kept) {
		r.t.Errorf("the secret is the one before: %v", err)
	}
}

// tokens are signed by another secret after a rotation.
func (r *clientRig) tokens() {
	r.t.Helper()
	dir := clients.Dir(store.Disk, r.store())
	before, err := clients.Secrets(store.Disk, dir)
	if err != nil {
		r.t.Fatal(err)
	}
	r.client(0, "rotate-token-secret", "--leaked")
	after, err := clients.Secrets(store.Disk, dir)
	if err != nil || len(after) != 1 || after[0].ID == before[0].ID {
		r.t.Errorf("%d secrets: %v", len(after), err)
	}
}

// TestKeygen: the private key stands in its file alone, which nobody else can read and
// nothing replaces.
func TestKeygen(t *testing.T) {
	for _, alg := range []string{"ES384", "RS384"} {
		name := filepath.Join(t.TempDir(), "k")
		got, code := command(t, "client", "keygen", "--alg", alg, "--out", name)
		private, err := os.ReadFile(name + ".private.json")
		if err != nil || code != 0 {
			t.Fatal(got, err)
		}
		var key struct{ D, Kid string }
		if err := json.Unmarshal(private, &key); err != nil || key.D == "" {
			t.Errorf("%s: no private key: %v", alg, err)
		}
		public, err := os.ReadFile(name + ".jwks.json")
		if err != nil {
			t.Fatal(err)
		}
		if keys, err := smart.ParseKeys(public); err != nil || keys[0].KeyID != key.Kid || keys[0].Algorithm != alg {
			t.Errorf("%s: the public key: %v", alg, err)
		}
		private, err = os.ReadFile(name + ".private.pem")
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(private)
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		same := jose.JSONWebKey{Key: parsed}
		if print, err := same.Thumbprint(crypto.SHA256); err != nil || base64.RawURLEncoding.EncodeToString(print) != key.Kid {
			t.Errorf("%s: the PEM is of another key: %v", alg, err)
		}
		if strings.Contains(got+string(public), key.D) {
			t.Errorf("%s: the private key is shown", alg)
		}
		for _, file := range []string{".private.json", ".private.pem"} {
			if at, err := os.Stat(name + file); err != nil || at.Mode().Perm() != 0o600 {
				t.Errorf("%s: others can read %s: %v", alg, file, err)
			}
		}
		if got, code := command(t, "client", "keygen", "--out", name); code == 0 || !strings.Contains(got, "is there already") {
			t.Errorf("%s: a key is replaced: %s", alg, got)
		}
	}
}
