package pipeline

import (
	"fmt"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// TestReasonsAreFew: where in a record something is wrong makes no label of its own, and
// reasons that are made up end as one.
func TestReasonsAreFew(t *testing.T) {
	reader := sdk.NewManualReader()
	m, err := newMetrics(sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"), &Pipeline{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		m.dead(t.Context(), "t", fmt.Sprintf("entry %d: request is missing", i))
		m.dead(t.Context(), "t", fmt.Sprintf("entry %d: resource at byte %d: not a JSON value", i, i*i))
	}
	for i := range 100 {
		m.dead(t.Context(), "t", fmt.Sprintf("made up %d", i))
	}
	var rm metricdata.ResourceMetrics
	err = m.gauges.Unregister() // of a pipeline that reads nothing
	if err == nil {
		err = reader.Collect(t.Context(), &rm)
	}
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, metric := range rm.ScopeMetrics[0].Metrics {
		if sum, is := metric.Data.(metricdata.Sum[int64]); is && strings.HasSuffix(metric.Name, "dead_letters") {
			for _, p := range sum.DataPoints {
				reason, _ := p.Attributes.Value("reason")
				counts[reason.AsString()] = p.Value
			}
		}
	}
	if counts["entry n: request is missing"] != 100 || counts["entry n: resource at byte n: not a JSON value"] != 100 || len(counts) != maxReasons+1 {
		t.Errorf("%d labels: %v", len(counts), counts)
	}
}
