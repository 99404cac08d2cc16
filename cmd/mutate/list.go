package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A mutation is one line broken on purpose, and the tests that must notice.
type mutation struct {
	name string
	line int // in the list
	file string
	old  string // one line of the file, without its indentation
	new  string // what stands there instead; "" for nothing
	test []string
}

// parse reads the list. Entries are separated by empty lines; # begins a
// comment line. A name is followed by these lines, each once:
//
//	file store/commit.go
//	-return db.sync()
//	+return nil
//	test ./store/... -run Crash
func parse(r io.Reader) ([]mutation, error) {
	var list []mutation
	var faults []error
	names := map[string]bool{}
	var m *mutation
	finish := func() {
		if m == nil {
			return
		}
		if m.file == "" || m.old == "" || m.old == m.new || len(m.test) == 0 {
			faults = append(faults, fmt.Errorf("line %d: %s needs a file, a -line, a different +line and a test", m.line, m.name))
		}
		if names[m.name] {
			faults = append(faults, fmt.Errorf("line %d: %s is there twice", m.line, m.name))
		}
		names[m.name] = true
		list = append(list, *m)
		m = nil
	}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		switch {
		case text == "":
			finish()
		case strings.HasPrefix(text, "#"):
		case m == nil:
			m = &mutation{name: text, line: n}
		default:
			if err := m.take(text); err != nil {
				faults = append(faults, fmt.Errorf("line %d: %w", n, err))
			}
		}
	}
	finish()
	return list, errors.Join(append(faults, lines.Err())...)
}

func (m *mutation) take(text string) error {
	file, isFile := strings.CutPrefix(text, "file ")
	test, isTest := strings.CutPrefix(text, "test ")
	switch {
	case isFile && m.file == "":
		m.file = strings.TrimSpace(file)
	case isTest && m.test == nil:
		m.test = strings.Fields(test)
	case text[0] == '-' && m.old == "":
		m.old = strings.TrimSpace(text[1:])
	case text[0] == '+' && m.new == "":
		m.new = strings.TrimSpace(text[1:])
	default:
		return fmt.Errorf("%q is not expected here", text)
	}
	return nil
}

// apply breaks the line. It must stand exactly once in the source, so that an
// entry which the code has outgrown is noticed and not silently passed over.
func (m *mutation) apply(source string) (string, error) {
	lines := strings.Split(source, "\n")
	at := -1
	for i, line := range lines {
		if strings.TrimSpace(line) != m.old {
			continue
		}
		if at >= 0 {
			return "", fmt.Errorf("%s: lines %d and %d both are %q", m.file, at+1, i+1, m.old)
		}
		at = i
	}
	if at < 0 {
		return "", fmt.Errorf("%s: no line is %q any more", m.file, m.old)
	}
	indent, _, _ := strings.Cut(lines[at], m.old)
	lines[at] = indent + m.new
	return strings.Join(lines, "\n"), nil
}
