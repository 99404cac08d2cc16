package read

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"

	"tidemark/api/access"
	"tidemark/api/apitest"
	"tidemark/api/clients"
	"tidemark/api/smart"
	"tidemark/store/fhir"
)

// TestTurns: who sends many requests waits for his own, others only for one of his; nobody
// waits without end, and who comes again when he is told to has his turn.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 10*time.Second)
		const took = 4 * time.Second
		type ended struct {
			after time.Duration
			err   error
		}
		begin := time.Now()
		ask := func(owner access.Owner) chan ended {
			c := make(chan ended, 1)
			go func() {
				done, err := turns.enter(t.Context(), owner)
				if err == nil {
					time.Sleep(took)
					done()
				}
				c <- ended{time.Since(begin), err}
			}()
			synctest.Wait()
			return c
		}
		var greedy []chan ended
		for range 9 {
			greedy = append(greedy, ask("#1"))
		}
		modest := ask("#2")
		if e := <-modest; e.err != nil || e.after != 2*took {
			t.Errorf("one request had its turn after %v, %v", e.after, e.err)
		}
		served, longest := 0, time.Duration(0)
		for _, c := range greedy {
			e := <-c
			late, is := errors.AsType[*TurnError](e.err)
			switch {
			case e.err == nil:
				served++
			case !is || e.after > 10*time.Second || late.After < took || late.After > maxAfter:
				t.Errorf("after %v: %+v, %v", e.after, late, e.err)
			default:
				longest = max(longest, late.After)
				time.Sleep(late.After)
				if e := <-ask("#1"); e.err != nil {
					t.Errorf("come again after %v: %v", late.After, e.err)
				}
			}
		}
		if longest < 6*took {
			t.Errorf("of seven that waited in vain each is told to come after %v at most", longest)
		}
		if served != 2 || len(turns.line) != 0 {
			t.Errorf("%d were served, %d lines are left", served, len(turns.line))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		held := ask("#3")
		if _, err := turns.enter(ctx, "#4"); !errors.Is(err, context.Canceled) {
			t.Errorf("who is gone: %v", err)
		}
		<-held
	})
}

// TestTurnsOfMembers: whom a Group lists, and who is certainly no member, is told while others
// go through all Patients; who must do so, too, waits, but not for ever.
func TestTurnsOfMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfined(t)
		h, get := c.h, c.get
		if err := get("named"); err != nil {
			t.Errorf("whom an identifier names: %v", err)
		}
		done, err := h.passes.enter(t.Context(), "#1")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := get("listed"); err != nil {
			t.Errorf("whom the Group lists: %v", err)
		}
		if err := get("other"); err == nil {
			t.Error("who is no member is read")
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("they waited for %v", took)
		}
		if _, late := errors.AsType[*TurnError](get("named")); !late || time.Since(begin) != turnWait {
			t.Errorf("who is named waited for %v", time.Since(begin))
		}
		done()
		if err := get("named"); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// TestTurnsTellNothing: that others are before is told of everybody who is asked for, be he
// known here or not.
func TestTurnsTellNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newConfined(t)
		done, err := c.h.looks.enter(t.Context(), c.caller.Owner())
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		for _, id := range []string{"listed", "other", "nowhere"} {
			if _, late := errors.AsType[*TurnError](c.get(id)); !late {
				t.Errorf("%s is answered for before it is the client's turn", id)
			}
		}
	})
}

// A confined is a client that may export a Group, which lists somebody and names somebody by
// an identifier.
type confined struct {
	t      *testing.T
	h      *Handlers
	caller *access.Caller
}

func newConfined(t *testing.T) *confined {
	t.Helper()
	db := apitest.New(100)
	for name, l := range map[string]apitest.Links{
		"Patient/listed": {Patients: []string{"listed"}},
		"Patient/named":  {Patients: []string{"named"}, More: `,"identifier":[{"system":"s","value":"1"}]`},
		"Patient/other":  {Patients: []string{"other"}, More: `,"identifier":[{"system":"s","value":"2"}]`},
		"Group/g":        {Members: []string{"Patient/listed", fhir.ByIdentifier([]byte("s"), []byte("1"))}},
	} {
		key, err := fhir.ParseKey(name)
		if err != nil {
			t.Fatal(err)
		}
		db.Put(key, 1, l)
	}
	return &confined{t, New(db, "http://tidemark.test/fhir", nil), &access.Caller{
		Serial: 7, Rights: smart.Parse("system/*.rs"), May: clients.Permission{Levels: []string{"group"}, Groups: []string{"g"}, Scopes: "system/*.rs"},
	}}
}

// get reads a Patient.
func (c *confined) get(id string) error {
	c.t.Helper()
	route := chi.NewRouteContext()
	route.URLParams.Add("id", id)
	ctx := context.WithValue(access.With(c.t.Context(), c.caller), chi.RouteCtxKey, route)
	return c.h.Resource("Patient")(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/Patient/"+id, nil))
}
