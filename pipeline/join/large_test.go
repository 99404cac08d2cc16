package join

import (
	"fmt"
	"testing"

	"tidemark/pipeline/decode"
	"tidemark/store/fhir"
)

// TestLargeTransactions: all resources of a transaction are told at its end, and what is noted
// for each row does not grow with how many there are.
func TestLargeTransactions(t *testing.T) {
	noted := func(n int) (bytes int) {
		k := newKept(t)
		j := New(decoder(t, decode.Options{}), k, func() fhir.Instant { return k.now }, nil)
		offset := int64(0)
		take := func(topic, value string) {
			t.Helper()
			rec := record(topic, nil, []byte(value))
			rec.Offset = offset
			offset++
			taken, err := j.Take(rec)
			if err != nil {
				t.Fatal(err)
			}
			for _, note := range taken.Notes {
				bytes += len(note.Name) + len(note.Value)
			}
			k.apply(taken)
			j.Applied()
		}
		row := func(table string, order int, columns string) {
			take("hapi.public."+table, fmt.Sprintf(`{"op":"c","after":{%s},"source":{"table":%q,"lsn":%d},"transaction":{"id":"7:1000","total_order":%d}}`, columns, table, 1000+order, order))
		}
		take("hapi.transaction", `{"status":"BEGIN","id":"7:1000","ts_ms":5}`)
		take("hapi.public.hfj_tag_def", `{"op":"r","after":{"tag_id":1,"tag_type":2,"tag_system":"s","tag_code":"R"},"source":{"table":"hfj_tag_def"}}`)
		for i := 1; i <= n; i++ {
			row("hfj_resource", 3*i, fmt.Sprintf(`"res_id":%d,"res_type":"Patient","fhir_id":"p%d"`, i, i))
			row("hfj_res_tag", 3*i+1, fmt.Sprintf(`"pid":%d,"res_id":%d,"tag_id":1`, i, i))
			row("hfj_res_ver", 3*i+2, fmt.Sprintf(`"pid":%d,"res_id":%d,"res_ver":1,"res_type":"Patient","has_tags":true,"res_encoding":"JSON","res_text_vc":"{\"resourceType\":\"Patient\"}"`, i, i))
		}
		if len(k.rows) != 0 {
			t.Fatalf("%d of %d are told before their transaction has ended", len(k.rows), n)
		}
		take("hapi.transaction", fmt.Sprintf(`{"status":"END","id":"7:9000","ts_ms":5,"event_count":%d,"data_collections":[{"data_collection":"public.hfj_resource","event_count":%d},{"data_collection":"public.hfj_res_tag","event_count":%d},{"data_collection":"public.hfj_res_ver","event_count":%d}]}`, 3*n, n, n, n))
		if len(k.rows) != n {
			t.Fatalf("%d of %d are told at the end", len(k.rows), n)
		}
		for name := range k.notes {
			if len(name) > len(forEnd) && (name[:len(forEnd)] == forEnd || name[:len(ofEnd)] == ofEnd) {
				t.Errorf("%s is still noted", name)
			}
		}
		return bytes
	}
	if few, many := noted(500), noted(4000); many > 10*few {
		t.Errorf("of 500 resources %d bytes are noted, of 4000 %d", few, many)
	}
}
