package export

import (
	"encoding/json"

	"tidemark/store/fhir"
)

// Facts are what the audit trail has of a job: by them it can be told whose data it held.
type Facts struct {
	Upto         fhir.Instant // the transactionTime
	Since        fhir.Instant // None: from the beginning
	GroupVersion string       // meta.versionId of the Group at that time, if it has one
	Withheld     bool         // a policy, of its client or of all, may have left something out
}

// Facts of a job that has just begun.
func (j *Jobs) Facts(id string) (f Facts, err error) {
	s, r, release, err := j.open(id)
	if err != nil {
		return f, err
	}
	defer release()
	f = Facts{Upto: r.Upto, Since: r.Since, Withheld: r.Access.withholds()}
	if r.Pending == nil || r.Pending.Group == "" {
		return f, nil
	}
	body, err := s.Resource(fhir.Key{Type: groupType, ID: r.Pending.Group})
	var says struct{ Meta struct{ VersionID string } }
	if err == nil {
		err = json.Unmarshal(body, &says)
	}
	f.GroupVersion = says.Meta.VersionID
	return f, err
}
