package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each example of pipeline/EVENTS.md is what it says: the configuration is one, and the
// records below it are changes, all of them, in the way that it has them read.
func TestEventsExamples(t *testing.T) {
	text, err := os.ReadFile("../../pipeline/EVENTS.md")
	if err != nil {
		t.Fatal(err)
	}
	tried := map[string]int{}
	var format string
	var topics []string
	for block := range strings.SplitSeq(string(text), "\n\n") {
		if !strings.HasPrefix(block, "    ") {
			continue
		}
		block = strings.ReplaceAll("\n"+block, "\n    ", "\n")
		switch {
		case strings.HasPrefix(block, "\ntopics:"):
			topics = strings.Split(block, "\n")
			_, format, _ = strings.Cut(block, "format: ")
			format, _, _ = strings.Cut(format, "\n")
			example(t, format, block, nil)
		case strings.HasPrefix(block, "\n{\"topic\": "):
			var lines []string
			for line := range strings.Lines(strings.TrimSpace(block)) {
				if !strings.Contains(line, "Base64") { // of schemas that a registry has
					lines = append(lines, line)
				}
			}
			if len(lines) > 0 {
				example(t, format, strings.Join(topics, "\n"), lines)
				tried[format]++
			}
		}
	}
	for _, format := range []string{"bundle", "notification", "hapi-message", "lfh-event", "firely", "cloudevents", "debezium"} {
		if tried[format] == 0 {
			t.Errorf("there is no example of %s", format)
		}
	}
}

// example checks a configuration, or has records read with it.
func example(t *testing.T, format, topics string, records []string) {
	t.Helper()
	dir := t.TempDir()
	conf, file := filepath.Join(dir, "tidemark.yaml"), filepath.Join(dir, "records.ndjson")
	text := "kafka:\n  brokers: [127.0.0.1:9092]\n" + topics
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"check-config", conf}
	if records != nil {
		if err := os.WriteFile(file, []byte(strings.Join(records, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = []string{"validate", "--config", conf, "--file", file}
	}
	got, code := ends(t, args...)
	if code != 0 {
		t.Errorf("%s: the example of %s: exit %d: %s\n%s", args[0], format, code, got, text)
	}
	if records != nil && (!strings.Contains(got, " 0 say nothing, 0 refused") || !strings.Contains(got, fmt.Sprintf("%d records, read as format: %s", len(records), format))) {
		t.Errorf("the example of %s is read as: %s", format, got)
	}
}
