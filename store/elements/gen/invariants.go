package main

import (
	"fmt"
	"slices"
	"strings"
)

// What the invariants of the resource types (the constraints of their roots whose
// severity is error) mean for a resource from which root elements are taken away.
// Mandatory and modifier elements are never taken.
var (
	// demanded: without these elements, or one of them, the resource is invalid.
	// Which of them is there cannot be known, so all stay.
	demanded = map[string]string{
		"app-3":  "start end", // and app-2: neither without the other
		"apr-1":  "participantType actor",
		"cpb-1":  "rest messaging document",
		"cpb-2":  "description software implementation",
		"cpb-14": "implementation",
		"cpb-15": "software",
		"ipn-1":  "identifier name",
		"org-1":  "identifier name",
		"ppc-1":  "policy policyRule",
		// Its expression looks for a system "something"; the sentence beside it
		// means every system.
		"ppc-2": "patient",
		"sdf-4": "baseDefinition",
		"sdf-5": "context derivation",
		"sdf-6": "snapshot differential",
		"tcp-2": "description software implementation",
		"tcp-3": "implementation",
		"tcp-4": "software",
	}
	// beside: the first must not be there without the second.
	beside = map[string]string{
		"fhs-2": "estimatedAge>age",
		"prr-1": "orderDetail>code",
		"spd-1": "xpath>xpathUsage",
	}
	// harmless: nothing that may be taken away breaks them.
	harmless = strings.Fields(`ait-1 ait-2 app-2 app-4 bdl-1 bdl-2 bdl-3 bdl-4 bdl-7 con-4 con-5 cpb-3 cpb-7 cpb-16 csd-1 fhs-1 grp-1 ig-2
		lnk-1 lst-1 lst-2 lst-3 mdd-1 mea-1 mrp-1 mrp-2 msq-3 nsd-1 nsd-2 obs-6 obs-7 ppc-3 ppc-4 ppc-5 que-2 spd-2 sdf-1 sdf-9 sdf-11
		sdf-14 sdf-15 sdf-15a sdf-16 sdf-17 sdf-18 sdf-19 sdf-21 sdf-22 sdf-23 inv-1 tcp-5`)
	// given up: a Bundle that is a document or a message is invalid without its
	// entries, and with them it would be whole, though less was asked for.
	givenUp = strings.Fields("bdl-9 bdl-10 bdl-11 bdl-12")
)

// A judgement is what the invariants of one type come to.
type judgement struct {
	demanded []string
	beside   map[string]string
}

func (s definition) judge() (j judgement, err error) {
	j.beside = map[string]string{}
	for _, i := range s.Elements[0].Invariants {
		key := i.Key.V
		switch {
		// Those of every resource are about what stands below the root.
		case i.Severity.V != "error", strings.HasPrefix(key, "dom-"), slices.Contains(harmless, key), slices.Contains(givenUp, key):
		case demanded[key] != "":
			j.demanded = append(j.demanded, strings.Fields(demanded[key])...)
		case beside[key] != "":
			one, other, _ := strings.Cut(beside[key], ">")
			j.beside[one] = other
		default:
			return j, fmt.Errorf("the invariant %s of %s is new: judge it in gen/invariants.go", key, s.Type.V)
		}
	}
	return j, nil
}

func (j judgement) mark(name string) string {
	if slices.Contains(j.demanded, name) {
		return "+"
	}
	return ""
}

func (j judgement) companion(name string) string {
	if other := j.beside[name]; other != "" {
		return ">" + other
	}
	return ""
}
