package hospital

import "slices"

// Classes of a visit.
const (
	ambulatory uint8 = iota
	emergency
	inpatient
)

// found opens the hospital: its house, payers, wards and staff appear on the
// first day, its patients within two months, its panels when there is somebody
// to watch.
func (h *Hospital) found() {
	for i := range len(houses) {
		h.calendar.add(event{due: h.begin + int64(i), what: toCreate, res: h.make(organization, nil, nil)})
	}
	for range len(wards) {
		h.calendar.add(event{due: h.begin + 10, what: toCreate, res: h.make(location, nil, nil)})
	}
	h.staff = 8 + h.opts.Patients/25
	for range h.staff {
		h.calendar.add(event{due: h.begin + 20, what: toCreate, res: h.make(practitioner, nil, nil)})
	}
	for range h.opts.Patients {
		h.admit(h.begin + h.between(minute, 60*day))
	}
	for i := range 3 + h.opts.Patients/25 {
		p := &panel{res: h.make(group, nil, nil), title: i}
		p.res.panel, p.res.other = p, uint64(1+h.rng.IntN(h.staff))
		h.panels = append(h.panels, p)
		h.calendar.add(event{due: h.begin + 61*day + int64(i)*hour, what: toMeet, of: p})
	}
}

// admit registers a patient: Patient and Coverage now, the first visit soon.
func (h *Hospital) admit(due int64) {
	res := h.make(person, nil, nil)
	p := &patient{
		serial: res.serial, salt: res.salt, female: res.salt&1 == 0,
		born:   h.until - h.between(2*365*day, 90*365*day),
		doctor: uint64(1 + h.rng.IntN(h.staff)),
		payer:  uint64(2 + h.rng.IntN(len(houses)-1)), // the first house is the hospital
	}
	res.who = p
	cover := h.make(coverage, p, nil)
	p.cover = cover.serial
	for n := h.rng.IntN(4); n > 0; n-- {
		p.problems = append(p.problems, known{problem: uint16(h.rng.IntN(chronicProblems))})
	}
	h.patients = append(h.patients, p)
	h.calendar.add(event{due: due, what: toCreate, res: res})
	h.calendar.add(event{due: due + minute, what: toCreate, res: cover})
	h.calendar.add(event{due: due + h.between(hour, 30*day), what: toVisit, who: p})
}

// receive plans a visit with all that it leaves behind, and the next one.
func (h *Hospital) receive(p *patient, due, start int64) {
	gap := int64(365 * float64(day) / h.opts.Visits)
	h.calendar.add(event{due: due + h.between(gap/4, gap*7/4), what: toVisit, who: p})

	enc := h.make(encounter, p, nil)
	v := &visit{serial: enc.serial, start: start, doctor: p.doctor, place: uint64(1 + h.rng.IntN(len(wards)))}
	switch x := h.rng.Float64(); {
	case x < 0.04:
		v.class = inpatient
	case x < 0.12:
		v.class = emergency
	}
	enc.visit = v
	h.calendar.add(event{due: due, what: toCreate, res: enc})

	h.diagnose(p, v, due+10*minute)
	h.measure(p, v, due+4*minute)
	h.analyse(p, v, due+25*minute)
	h.prescribe(p, v, due+15*minute)
	h.bill(p, v, due+h.between(6*hour, 2*day))

	prov := h.make(provenance, p, v)
	h.calendar.add(event{due: due + 3*hour, what: toCreate, res: prov})
}

// diagnose finds the reason of the visit: a chronic problem that is recorded
// once, or an acute one.
func (h *Hospital) diagnose(p *patient, v *visit, due int64) {
	if len(p.problems) > 0 && h.chance(0.6) {
		k := &p.problems[h.rng.IntN(len(p.problems))]
		v.problem = k.problem
		if k.condition != 0 {
			v.found = k.condition
			return
		}
		k.condition = h.condition(p, v, due)
		return
	}
	v.problem = uint16(chronicProblems + h.rng.IntN(len(problems)-chronicProblems))
	h.condition(p, v, due)
}

func (h *Hospital) condition(p *patient, v *visit, due int64) uint64 {
	r := h.make(condition, p, v)
	r.item, v.found = v.problem, r.serial
	h.calendar.add(event{due: due, what: toCreate, res: r})
	return r.serial
}

func (h *Hospital) measure(p *patient, v *visit, due int64) {
	for i := range vitals {
		if !h.chance(vitals[i].often) {
			continue
		}
		r := h.make(vital, p, v)
		r.item, r.state = uint16(i), done
		h.calendar.add(event{due: due + int64(i)*20*second, what: toCreate, res: r})
	}
}

// analyse orders tests. The results of a panel have neighbouring serials, so a
// report needs to remember the first one only.
func (h *Hospital) analyse(p *patient, v *visit, due int64) {
	for i := range tests {
		if !h.chance(tests[i].often) {
			continue
		}
		soon := due + h.between(0, 90*minute)
		for j := range tests[i].results {
			r := h.make(lab, p, v)
			if j == 0 {
				v.first[i] = r.serial
			}
			r.item, r.other = uint16(j), uint64(i)
			if !h.chance(0.12) {
				r.state = done
			}
			h.calendar.add(event{due: soon + int64(j)*second, what: toCreate, res: r})
		}
		if len(tests[i].results) > 1 {
			r := h.make(report, p, v)
			r.item = uint16(i)
			h.calendar.add(event{due: soon + 31*hour, what: toCreate, res: r})
		}
	}
}

func (h *Hospital) prescribe(p *patient, v *visit, due int64) {
	for i, drug := range problems[v.problem].drugs {
		if h.chance(0.75) {
			r := h.make(medication, p, v)
			r.item, r.other = uint16(drug), v.found
			h.calendar.add(event{due: due + int64(i)*minute, what: toCreate, res: r})
		}
	}
}

func (h *Hospital) bill(p *patient, v *visit, due int64) {
	v.cents = 8_500 + h.between(0, 9_000) + int64(v.class)*60_000
	c := h.make(claim, p, v)
	h.calendar.add(event{due: due, what: toCreate, res: c})
	b := h.make(benefit, p, v)
	b.other = c.serial
	h.calendar.add(event{due: due + h.between(5*day, 20*day), what: toCreate, res: b})
}

// meet lets somebody join or leave a panel. A panel begins when it has someone
// to watch.
func (h *Hospital) meet(p *panel, now int64) (Record, bool) {
	if p.res.version == 0 {
		return h.openPanel(p, now), true
	}
	if p.res.changed >= now {
		return Record{}, false
	}
	who := h.patients[h.rng.IntN(len(h.patients))]
	i := slices.IndexFunc(p.members, func(m member) bool { return m.who == who.serial })
	switch {
	case i < 0 && who.here(now):
		p.members = append(p.members, member{who: who.serial, since: now})
	case i < 0:
		return Record{}, false
	case p.members[i].inactive || p.members[i].until != 0: // back again
		p.members[i] = member{who: who.serial, since: now}
	default:
		h.leave(p, i, now)
	}
	return h.write(p.res, Update, now, now), true
}

func (p *patient) here(now int64) bool { return p.registered != 0 && p.registered < now }

func (h *Hospital) openPanel(p *panel, now int64) Record {
	for range 10 + h.rng.IntN(20) {
		who := h.patients[h.rng.IntN(len(h.patients))]
		if who.here(now) && !slices.ContainsFunc(p.members, func(m member) bool { return m.who == who.serial }) {
			p.members = append(p.members, member{who: who.serial, since: now})
		}
	}
	p.res.born = now
	return h.write(p.res, Create, now, now)
}

// leave ends a membership in one of the three ways that sources use.
func (h *Hospital) leave(p *panel, i int, now int64) {
	switch h.rng.IntN(3) {
	case 0:
		p.members[i].inactive = true
	case 1:
		p.members[i].until = now
	default:
		p.members = slices.Delete(p.members, i, i+1)
	}
}
